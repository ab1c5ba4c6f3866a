import { after, before, describe } from "node:test";
import { startCluster, type TestCluster } from "./cluster.ts";
import { meshOnNodes } from "./mesh-on-nodes.ts";
import { nodeLife } from "./node-life.ts";
import { trafficKinds } from "./traffic-kinds.ts";
import { installVeil } from "./veil.ts";

describe("Veil on real nodes", () => {
  let cluster: TestCluster;
  before(async () => {
    cluster = await startCluster();
    await installVeil(cluster, { nodesAtOnce: "100%", "proxy.terminationGracePeriodSeconds": "10" });
  });
  after(() => cluster?.[Symbol.asyncDispose]());

  meshOnNodes(() => cluster);
  trafficKinds(() => cluster);
  nodeLife(() => cluster);
});
