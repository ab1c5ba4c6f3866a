import assert from "node:assert/strict";
import { createPublicKey } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "#base/clock";
import { createKubeconfig, openPki } from "#apiserver";
import { kubernetesFolder, type KubernetesProgram } from "../../tools/kubernetes-programs.ts";
import { eventually, must } from "../netns/harness.ts";
import { startDaemon, type Daemon } from "./daemons.ts";
import {
  ADMIN_KUBECONFIG,
  API_SERVICE_ADDRESS,
  API_URL,
  CONTROL_ADDRESS,
  CONTROL_CGROUP,
  CONTROL_NETNS,
  enterNetns,
  PKI_FOLDER,
  POD_RANGE,
  SERVICE_RANGE,
} from "./layout.ts";

const PKI = join(PKI_FOLDER, "pki");
const ETCD_URL = "http://127.0.0.1:2379";
const API_DEADLINE_MS = 180_000;
const PLACE = { cgroup: CONTROL_CGROUP, enter: enterNetns(CONTROL_NETNS) };

/** Writes a kubeconfig with a client certificate for this user and these groups; answers its path. */
export async function writeKubeconfig(path: string, user: string, groups: readonly string[] = []): Promise<string> {
  writeFileSync(path, await createKubeconfig({ dataDir: PKI_FOLDER, user, groups, server: API_URL }), { mode: 0o600 });
  return path;
}

/** Makes the cluster's authority and what the API server needs of it. */
export async function makePki(): Promise<void> {
  mkdirSync(PKI_FOLDER, { recursive: true, mode: 0o700 });
  const names = [CONTROL_ADDRESS, API_SERVICE_ADDRESS, "127.0.0.1", "kubernetes.default.svc", "kubernetes"];
  const { tokenKey } = await openPki(PKI_FOLDER, names, systemClock().now());
  writeFileSync(join(PKI, "sa.pub"), createPublicKey(tokenKey).export({ type: "spki", format: "pem" }));
  await writeKubeconfig(ADMIN_KUBECONFIG, "kubernetes-admin", ["system:masters"]);
}

/** Starts etcd, the API server, the controller manager and the scheduler; resolves when the API is ready. */
export async function startControlPlane(): Promise<Daemon[]> {
  const daemons = [startEtcd(), startApiServer()];
  await waitForApi(daemons);
  return [...daemons, await startControllerManager(), await startScheduler()];
}

/** Starts the API server on the data that is there. */
export function startApiServer(): Daemon {
  return startProgram("kube-apiserver", {
    "etcd-servers": ETCD_URL,
    "secure-port": "6443",
    "advertise-address": CONTROL_ADDRESS,
    "tls-cert-file": join(PKI, "server.crt"),
    "tls-private-key-file": join(PKI, "server.key"),
    "client-ca-file": join(PKI, "ca.crt"),
    "kubelet-client-certificate": join(PKI, "kubelet-client.crt"),
    "kubelet-client-key": join(PKI, "kubelet-client.key"),
    "kubelet-preferred-address-types": "InternalIP",
    "service-account-issuer": "https://kubernetes.default.svc",
    "service-account-key-file": join(PKI, "sa.pub"),
    "service-account-signing-key-file": join(PKI, "sa.key"),
    "service-cluster-ip-range": SERVICE_RANGE,
    "authorization-mode": "Node,RBAC",
    "enable-admission-plugins": "NodeRestriction",
    "allow-privileged": "true",
    // It runs beside the nodes, without a kube-proxy of its own: it finds the pods behind a Service itself.
    "enable-aggregator-routing": "true",
    profiling: "false",
  });
}

function startEtcd(): Daemon {
  const data = ["--data-dir", join(PKI_FOLDER, "etcd"), "--unsafe-no-fsync"];
  const urls = ["--listen-client-urls", ETCD_URL, "--advertise-client-urls", ETCD_URL];
  const peers = ["--listen-peer-urls", "http://127.0.0.1:2380", "--logger", "zap", "--log-level", "warn"];
  return startDaemon("etcd", ["etcd", ...data, ...urls, ...peers], PLACE);
}

async function startControllerManager(): Promise<Daemon> {
  const name = "kube-controller-manager";
  const kubeconfig = await writeKubeconfig(join(PKI_FOLDER, `${name}.kubeconfig`), `system:${name}`);
  return startProgram(name, {
    kubeconfig,
    "root-ca-file": join(PKI, "ca.crt"),
    "service-account-private-key-file": join(PKI, "sa.key"),
    "cluster-signing-cert-file": join(PKI, "ca.crt"),
    "cluster-signing-key-file": join(PKI, "ca.key"),
    "use-service-account-credentials": "true",
    "allocate-node-cidrs": "true",
    "cluster-cidr": POD_RANGE,
    "service-cluster-ip-range": SERVICE_RANGE,
    "leader-elect": "false",
    profiling: "false",
  });
}

async function startScheduler(): Promise<Daemon> {
  const name = "kube-scheduler";
  const kubeconfig = await writeKubeconfig(join(PKI_FOLDER, `${name}.kubeconfig`), `system:${name}`);
  return startProgram(name, { kubeconfig, "leader-elect": "false" });
}

function startProgram(name: KubernetesProgram, flags: Readonly<Record<string, string>>): Daemon {
  const words = Object.entries(flags).map(([flag, value]) => `--${flag}=${value}`);
  return startDaemon(name, [join(kubernetesFolder(), name), ...words], PLACE);
}

/** Waits until the API server says that it is ready; fails at once when one of the daemons has ended. */
export async function waitForApi(daemons: readonly Daemon[]): Promise<void> {
  const curl = ["curl", "--silent", "--fail", "--max-time", "5", "--cacert", join(PKI, "ca.crt")];
  const answer = await eventually(
    "the API server to be ready",
    async () =>
      daemons.map((daemon) => daemon.findEnd()).find((end) => end !== undefined) ??
      ((await must([...curl, `${API_URL}/readyz`])) === "ok" ? "ok" : undefined),
    API_DEADLINE_MS,
  );
  assert.equal(answer, "ok");
}
