import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { kubernetesFolder } from "../../tools/kubernetes-programs.ts";
import { eventually, must, run } from "../netns/harness.ts";
import { clusterCgroups, clusterProcesses, makeCgroups, removeCgroups } from "./cgroups.ts";
import { writeKubeconfig } from "./control-plane.ts";
import { startDaemon, type Daemon } from "./daemons.ts";
import { killProcesses } from "./leftovers.ts";
import { CGROUP, enterNetns, enterNode, FOLDER, PKI_FOLDER, POD_RANGE, type NodeLayout } from "./layout.ts";
import { makeNodeNetwork, unplugNode } from "./network.ts";

type DaemonName = "containerd" | "kubelet" | "kube-proxy";

const CONTAINERD_SOCKET = "/run/containerd/containerd.sock";
/** The image that keeps a pod's namespaces: see images.ts. */
export const PAUSE_IMAGE = "docker.io/local/pause:1";
/** Commands that succeed on a node when the daemon answers. */
const QUESTIONS: Readonly<Record<DaemonName, readonly string[]>> = {
  containerd: ["ctr", "--address", CONTAINERD_SOCKET, "version"],
  kubelet: ["curl", "--silent", "--fail", "http://127.0.0.1:10248/healthz"],
  "kube-proxy": ["curl", "--silent", "--fail", "http://127.0.0.1:10256/livez"],
};
const ANSWER_DEADLINE_MS = 120_000;
/** Where Debian has the plugins, and those that a node gets into /opt/cni/bin. */
const CNI_PLUGINS = "/usr/lib/cni";
const WANTED_PLUGINS = ["bridge", "host-local", "loopback"];
/** Kubelets set these for the whole machine; a node gets copies that only it sees. */
const MACHINE_SETTINGS = [
  "vm/overcommit_memory",
  "vm/panic_on_oom",
  "kernel/panic",
  "kernel/panic_on_oops",
  "kernel/keys/root_maxkeys",
  "kernel/keys/root_maxbytes",
];

/**
 * What a node has for itself besides its network: a hostname, /run and /sys, and /etc, /opt and /var in which only it sees what is
 * written. Run in the node's network namespace, as /sys shows the network of who mounts it.
 */
const SETUP = String.raw`
set -eu
node=$1 name=$2 folder=$3; shift 3
run=$node/run
mkdir -p "$run" "$node/cgroup"
mount -n -t tmpfs -o mode=755 tmpfs "$run"
mkdir -p "$run$(echo "$folder" | cut -c5-)" "$run/netns" "$run/lock"
mount -n --bind "$folder" "$run$(echo "$folder" | cut -c5-)"
[ -L /var/run ] || mount -n --bind "$run" /var/run
mount -n --move "$run" /run
mount -n --rbind /sys/fs/cgroup "$node/cgroup"
mount -n -t sysfs sysfs /sys
mount -n --move "$node/cgroup" /sys/fs/cgroup
for setting in "$@"; do
  copy=$node/settings/$setting
  mkdir -p "$(dirname "$copy")"
  cat "/proc/sys/$setting" >"$copy"
  mount -n --bind "$copy" "/proc/sys/$setting"
done
for tree in etc opt var; do
  mkdir -p "$node/$tree/own" "$node/$tree/work"
  mount -n -t overlay -o "lowerdir=/$tree,upperdir=$node/$tree/own,workdir=$node/$tree/work" overlay "/$tree"
done
# Containers' own overlays, and the volumes of pods, cannot be on one.
for tree in containerd kubelet; do
  mkdir -p "$node/$tree" "/var/lib/$tree"
  mount -n --bind "$node/$tree" "/var/lib/$tree"
done
mount -n --make-rshared /
hostname "$name"
`;

/** A node of the test cluster: its daemons, and how to halt and boot it. */
export class ClusterNode {
  readonly layout: NodeLayout;
  #daemons = new Map<string, Daemon>();

  constructor(layout: NodeLayout) {
    this.layout = layout;
  }

  get name(): string {
    return this.layout.name;
  }

  /** The words that run a command on the node. */
  get enter(): string[] {
    return enterNode(this.layout);
  }

  /** Makes the node's namespaces and starts its daemons. What it had on disk when it was halted is there again. */
  async boot(): Promise<void> {
    const { layout } = this;
    makeCgroups([layout.podsCgroup, layout.daemonsCgroup]);
    await makeNodeNetwork(layout);
    await this.#makeNamespaces();
    await this.#writeFiles();
    this.#start("containerd");
    await this.#answers("containerd");
  }

  /** Starts the kubelet and kube-proxy; {@link boot} has been, and the images are there. */
  startKubelet(): void {
    this.#start("kubelet");
    this.#start("kube-proxy");
  }

  /** Fails with its last words when a daemon of the node has ended. */
  findEnd(): string | undefined {
    return [...this.#daemons.values()].map((daemon) => daemon.findEnd()).find((end) => end !== undefined);
  }

  /** Kills one of the node's daemons and starts it again; resolves when it answers. Pods live on. */
  async restart(daemon: DaemonName): Promise<void> {
    await this.#daemons.get(daemon)?.kill();
    this.#start(daemon);
    await this.#answers(daemon);
  }

  /** Ends everything on the node at once, as a power cut does: pods, daemons, /run, network. Its disk stays. */
  async halt(): Promise<void> {
    const { daemonsCgroup, podsCgroup, mountNamespace, utsNamespace } = this.layout;
    await killProcesses(() => [...clusterProcesses(daemonsCgroup), ...clusterProcesses(podsCgroup)]);
    this.#daemons.clear();
    // A kubelet that finds those of earlier pods looks for each one's container for seconds.
    await eventually(`the cgroups of ${this.name} to be gone`, () => {
      removeCgroups(podsCgroup);
      return clusterCgroups(podsCgroup).length === 0 || undefined;
    });
    for (const file of [mountNamespace, utsNamespace]) {
      await run(["umount", "-l", file]);
      rmSync(file, { force: true });
    }
    await unplugNode(this.layout);
  }

  /** Brings an image (an OCI layout in a tar) to the node. */
  async importImage(tar: string): Promise<void> {
    await must([
      ...this.enter,
      "ctr",
      "--address",
      CONTAINERD_SOCKET,
      "--namespace",
      "k8s.io",
      "images",
      "import",
      tar,
    ]);
  }

  /** Gives the node's pods their addresses: without this file the node is not ready. */
  async writePodNetwork(podRange: string): Promise<void> {
    const plugin = {
      type: "bridge",
      bridge: "cni0",
      isGateway: true,
      hairpinMode: true,
      ipam: { type: "host-local", ranges: [[{ subnet: podRange }]], routes: [{ dst: "0.0.0.0/0" }] },
    };
    const list = { cniVersion: "1.0.0", name: "pods", plugins: [plugin] };
    const file = "/etc/cni/net.d/10-pods.conflist";
    const script = `mkdir -p ${dirname(file)}; cat >${file}.part; mv ${file}.part ${file}`;
    await must([...this.enter, "sh", "-c", script], { input: JSON.stringify(list) });
  }

  async #answers(daemon: DaemonName): Promise<void> {
    await eventually(
      `${daemon} of ${this.name} to answer`,
      async () => (await run([...this.enter, ...QUESTIONS[daemon]])).code === 0 || undefined,
      ANSWER_DEADLINE_MS,
    );
  }

  #start(name: DaemonName): void {
    const { folder, daemonsCgroup } = this.layout;
    const programs = kubernetesFolder();
    const commands = {
      containerd: ["containerd", "--config", `${folder}/containerd.toml`],
      kubelet: [
        join(programs, "kubelet"),
        `--config=${folder}/kubelet.json`,
        `--kubeconfig=${folder}/kubelet.kubeconfig`,
        `--hostname-override=${this.name}`,
        `--node-ip=${this.layout.address}`,
      ],
      "kube-proxy": [join(programs, "kube-proxy"), `--config=${folder}/kube-proxy.json`],
    };
    const place = { cgroup: daemonsCgroup, enter: this.enter };
    this.#daemons.set(name, startDaemon(`${this.name}-${name}`, commands[name], place));
  }

  async #makeNamespaces(): Promise<void> {
    const { folder, mountNamespace, utsNamespace, netns } = this.layout;
    mkdirSync(folder, { recursive: true });
    mkdirSync(dirname(mountNamespace), { recursive: true });
    for (const file of [mountNamespace, utsNamespace]) writeFileSync(file, "");
    const unshare = ["unshare", `--mount=${mountNamespace}`, `--uts=${utsNamespace}`, "--propagation=slave", "--"];
    const script = ["sh", "-c", SETUP, "sh", folder, this.name, FOLDER, ...MACHINE_SETTINGS];
    await must([...enterNetns(netns), ...unshare, ...script]);
    const plugins = WANTED_PLUGINS.map((name) => join(CNI_PLUGINS, name)).join(" ");
    await must([...this.enter, "sh", "-c", `mkdir -p /opt/cni/bin && cp ${plugins} /opt/cni/bin/`]);
  }

  async #writeFiles(): Promise<void> {
    const { folder } = this.layout;
    if (existsSync(`${folder}/kubelet.json`)) return; // it was halted, and boots again
    writeFileSync(`${folder}/containerd.toml`, CONTAINERD);
    writeFileSync(`${folder}/resolv.conf`, "nameserver 10.96.0.10\n");
    writeFileSync(`${folder}/kubelet.json`, JSON.stringify(kubeletConfig(this.layout)));
    await writeKubeconfig(`${folder}/kubelet.kubeconfig`, `system:node:${this.name}`, ["system:nodes"]);
    await writeKubeconfig(`${folder}/kube-proxy.kubeconfig`, "system:kube-proxy");
    writeFileSync(`${folder}/kube-proxy.json`, JSON.stringify(proxyConfig(this.layout)));
  }
}

/** `restrict_oom_score_adj`: without CAP_SYS_RESOURCE no process may be made less likely to be killed, and runc would end. */
const CONTAINERD = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
`;

function kubeletConfig({ folder, podsCgroup }: NodeLayout): object {
  return {
    apiVersion: "kubelet.config.k8s.io/v1beta1",
    kind: "KubeletConfiguration",
    authentication: {
      anonymous: { enabled: false },
      webhook: { enabled: true },
      x509: { clientCAFile: join(PKI_FOLDER, "pki/ca.crt") },
    },
    authorization: { mode: "Webhook" },
    containerRuntimeEndpoint: `unix://${CONTAINERD_SOCKET}`,
    cgroupDriver: "cgroupfs",
    cgroupRoot: `/${CGROUP}/${podsCgroup}`,
    failCgroupV1: false,
    failSwapOn: false,
    enforceNodeAllocatable: [],
    // The machine is not the cluster's alone: how full it is says nothing about the pods.
    evictionHard: { "memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%" },
    imageGCHighThresholdPercent: 100,
    makeIPTablesUtilChains: false,
    // What a proxy writes while a test runs stays in one file.
    containerLogMaxSize: "1Gi",
    clusterDNS: ["10.96.0.10"],
    clusterDomain: "cluster.local",
    resolvConf: `${folder}/resolv.conf`,
    volumePluginDir: "/var/lib/kubelet/volume-plugins",
  };
}

function proxyConfig({ folder, name }: NodeLayout): object {
  return {
    apiVersion: "kubeproxy.config.k8s.io/v1alpha1",
    kind: "KubeProxyConfiguration",
    mode: "nftables",
    clusterCIDR: POD_RANGE,
    hostnameOverride: name,
    clientConnection: { kubeconfig: `${folder}/kube-proxy.kubeconfig` },
    // Zero: the settings of the machine's connection tracking stay as they are.
    conntrack: { maxPerCore: 0, min: 0, tcpEstablishedTimeout: "0s", tcpCloseWaitTimeout: "0s" },
  };
}
