import assert from "node:assert/strict";
import { test } from "node:test";
import { formatStatus } from "./report.ts";

test("a state reads as two tables: where things are, and how they are", () => {
  const text = formatStatus({
    name: "demo",
    ready: false,
    kubeconfig: "/run/veil-lab/demo/kubeconfig",
    server: "https://127.0.0.1:40000",
    control: {
      netns: "veil-demo-control",
      address: "172.20.0.2",
      roles: [{ role: "apiserver", health: "ready", pid: 12, memoryBytes: 50 << 20, restarts: 1 }],
    },
    nodes: [
      {
        name: "node1",
        netns: "veil-demo-node1",
        interface: "eth0",
        addresses: ["172.20.0.11/24", "fe80::1/64"],
        podRange: "10.244.1.0/24",
        roles: [{ role: "proxy", health: "down", reason: "no such process", memoryBytes: 0 }],
      },
    ],
  });
  assert.equal(
    text,
    `lab demo: not ready, API https://127.0.0.1:40000

         NAMESPACE          UNDERLAY             PODS
control  veil-demo-control  172.20.0.2           -
node1    veil-demo-node1    eth0 172.20.0.11/24  10.244.1.0/24

WHERE    ROLE       HEALTH  PID  MEMORY  RESTARTS
control  apiserver  ready   12   50 MiB  1
node1    proxy      down    -    -       -         no such process
`,
  );
});
