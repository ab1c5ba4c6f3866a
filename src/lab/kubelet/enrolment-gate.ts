import { request } from "node:http";
import { deadline, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { resources, type KubeClient, type Pod } from "#kube";
import { DATAPLANE_MODE_LABEL, MTLS_LABEL } from "#model/enrol-labels";
import { kubeletError } from "./errors.ts";

/** The agent's answer may take as long as the proxy needs for a certificate. */
const DEADLINE_MS = 30_000;
const MAX_ANSWER_BYTES = 64 * 1024;

/** Labels that ask for enrolment, or (the second value) against it. */
const LABELS = [
  { name: MTLS_LABEL, on: "true", off: "false" },
  { name: DATAPLANE_MODE_LABEL, on: "ambient", off: "none" },
] as const;

type Labels = Readonly<Record<string, string>>;

/**
 * True when the labels of a pod or of its namespace ask for enrolment, and the pod's own do not ask against it. The agent
 * decides finally; this only says whether a pod must wait for it.
 */
export function wantsEnrolment(pod: Labels, namespace: Labels): boolean {
  if (LABELS.some(({ name, off }) => pod[name] === off)) return false;
  return LABELS.some(({ name, on }) => pod[name] === on || namespace[name] === on);
}

/** As a chained CNI plugin: asks the agent of the node to enrol a pod before its first process, and fails closed. */
export class EnrolmentGate {
  readonly #client: KubeClient;
  readonly #socket: string;
  readonly #clock: Clock;

  constructor(client: KubeClient, socket: string, clock: Clock) {
    this.#client = client;
    this.#socket = socket;
    this.#clock = clock;
  }

  /** Resolves with what enrols the pod, or with what does nothing when it is not to be enrolled. */
  async prepare(pod: Pod): Promise<(sandbox: { netns: string; ip: string }) => Promise<void>> {
    const { name = "", namespace = "default", labels = {} } = pod.metadata ?? {};
    try {
      const found = await this.#client.get(resources.namespaces, namespace);
      const wanted = wantsEnrolment(labels, found.metadata?.labels ?? {});
      return wanted ? (sandbox) => this.#enrol({ name, namespace }, sandbox) : async () => {};
    } catch (cause) {
      throw kubeletError("KUBELET_ENROLMENT", `cannot tell whether ${namespace}/${name} is to be enrolled`, { cause });
    }
  }

  async #enrol(pod: { name: string; namespace: string }, sandbox: { netns: string; ip: string }): Promise<void> {
    const { name, namespace } = pod;
    const ips = [{ Interface: 0, Address: { IP: sandbox.ip, Mask: "/////w==" } }];
    const event = { Netns: sandbox.netns, PodName: name, PodNamespace: namespace, IPs: ips };
    try {
      await this.#post("/cmdadd", JSON.stringify(event));
    } catch (cause) {
      const message = `pod ${namespace}/${name} must be enrolled before it starts, and the agent of its node did not do it: ${messageOf(cause)}`;
      throw kubeletError("KUBELET_ENROLMENT", message, { details: { socket: this.#socket } });
    }
  }

  async #post(path: string, body: string): Promise<void> {
    const { signal, clear } = deadline(this.#clock, DEADLINE_MS, { reason: new Error("no answer in time") });
    const headers = { "content-type": "application/json", "content-length": String(Buffer.byteLength(body)) };
    try {
      await new Promise<void>((resolve, reject) => {
        const call = request({ socketPath: this.#socket, path, method: "POST", headers, signal, agent: false });
        call.once("error", (error) => reject(signal.aborted ? signal.reason : error));
        call.once("response", (response) => {
          let text = "";
          response.setEncoding("utf8");
          response.on("data", (part: string) => {
            if (text.length < MAX_ANSWER_BYTES) text += part;
          });
          response.once("error", reject);
          response.once("end", () => {
            const { statusCode = 500 } = response;
            if (statusCode >= 200 && statusCode < 300) resolve();
            else reject(new Error(`status ${statusCode} ${text.trim()}`.trim()));
          });
        });
        call.end(body);
      });
    } finally {
      clear();
    }
  }
}
