import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { findWords, readTls, tcpStreams } from "#capture";
import { eventually, startLab, VEIL, type TestLab } from "./harness.ts";

const PORT = 8080;
const LABEL = { "io.cilium/mtls-enabled": "true" };
/** Words that only the test's own pods say. */
const QUESTION = "a-question-about-green-umbrellas";
const ANSWER = "an-answer-about-green-umbrellas";

interface Place {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
}

/** A namespace with one account. */
function namespaceOf(name: string, labels: Record<string, string>): object {
  return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
}

function podOf({ namespace, name, node }: Place, program: readonly string[], serves: boolean): object {
  const probe = serves ? { readinessProbe: { tcpSocket: { port: PORT }, periodSeconds: 1 } } : {};
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace, name, labels: { app: name } },
    spec: {
      nodeName: node,
      terminationGracePeriodSeconds: 1,
      containers: [{ name: "main", image: "veil", command: [VEIL, "program", ...program], ...probe }],
    },
  };
}

function server(place: Place): object[] {
  const { namespace, name } = place;
  const spec = { selector: { app: name }, ports: [{ port: PORT, targetPort: PORT }] };
  return [
    podOf(place, ["http-echo", "--port", String(PORT), "--words", ANSWER], true),
    { apiVersion: "v1", kind: "Service", metadata: { namespace, name }, spec },
  ];
}

function client(place: Place, serverName: string): object {
  return podOf(place, ["client", "--interval", "100", "--words", QUESTION, `${serverName}:${PORT}`], false);
}

describe("a lab with Veil in it", () => {
  let lab: TestLab;
  before(async () => {
    lab = await startLab("mesh");
    await lab.apply([
      namespaceOf("shop", LABEL),
      namespaceOf("bank", LABEL),
      namespaceOf("plain", {}),
      ...server({ namespace: "bank", name: "ledger", node: "node2" }),
      ...server({ namespace: "plain", name: "board", node: "node2" }),
      client({ namespace: "shop", name: "customer", node: "node1" }, "ledger.bank"),
      client({ namespace: "plain", name: "reader", node: "node1" }, "board.plain"),
    ]);
  });
  after(async () => {
    await lab?.[Symbol.asyncDispose]();
  });

  it("starts enrolled pods enrolled, and answers them", async () => {
    for (const [namespace, name] of [
      ["bank", "ledger"],
      ["shop", "customer"],
    ] as const) {
      const pod = await lab.readyPod(namespace, name);
      assert.equal(pod.metadata?.annotations?.["ambient.istio.io/redirection"], "enabled", `${namespace}/${name}`);
    }
    await eventually("the client's first answer", () => answered("shop", "customer"));
    await eventually("the unlabelled client's first answer", () => answered("plain", "reader"));
  });

  it("carries what enrolled pods say in TLS 1.3 on 15008, where unlabelled ones can be read", async () => {
    await using capture = await lab.captureNode("node1", { filter: "tcp" });
    for (const [namespace, name] of [
      ["shop", "customer"],
      ["plain", "reader"],
    ] as const) {
      const before = await answers(namespace, name);
      await eventually(`${name}'s answers`, async () =>
        (await answers(namespace, name)) > before + 5 ? true : undefined,
      );
    }
    const packets = await capture.stop();
    const ledger = (await lab.readyPod("bank", "ledger")).status?.podIP ?? "";
    const board = (await lab.readyPod("plain", "board")).status?.podIP ?? "";
    const shown = (ip: string) =>
      findWords(packets, [QUESTION, ANSWER]).filter(
        ({ packet }) => String(packet.source) === ip || String(packet.destination) === ip,
      );
    assert.ok(shown(board).length > 0, "the capture finds the words of the pair that is in clear");
    assert.deepEqual(shown(ledger), []);
    const tunnel = tcpStreams(packets).filter(({ from, to }) => from === `${ledger}:15008` || to === `${ledger}:15008`);
    assert.ok(tunnel.length > 0, "there is traffic on port 15008");
    const others = tcpStreams(packets).filter(({ to }) => to.startsWith(`${ledger}:`) && to !== `${ledger}:15008`);
    assert.deepEqual(
      others.map(({ to }) => to),
      [],
    );
  });

  it("makes new tunnels with TLS 1.3", async () => {
    await using capture = await lab.captureNode("node1", { filter: "tcp port 15008" });
    await lab.apply([client({ namespace: "bank", name: "second", node: "node1" }, "ledger.bank")]);
    await eventually("the second client's first answer", () => answered("bank", "second"));
    const packets = await capture.stop();
    const versions = tcpStreams(packets)
      .filter(({ from }) => from.endsWith(":15008"))
      .map((stream) => readTls(stream).version);
    assert.ok(versions.includes("TLS 1.3"), `versions seen: ${versions.join(", ")}`);
  });

  async function answers(namespace: string, name: string): Promise<number> {
    return (await lab.client.logs({ namespace, name })).split(ANSWER).length;
  }

  async function answered(namespace: string, name: string): Promise<true | undefined> {
    const log = await lab.client.logs({ namespace, name, tailLines: 20 });
    return log.includes(ANSWER) ? true : undefined;
  }
});
