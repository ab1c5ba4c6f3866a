import { describe, it } from "node:test";
import { flipsFailNothing, nothingIsClear, unenrolmentFailsNothing, type EnrolledScene } from "../netns/mesh-bodies.ts";
import { killFailsClosed, killsFailNothing, replacedProxiesFailNothing } from "../netns/mesh-outages.ts";
import { clusterMesh } from "./cluster-mesh.ts";
import type { TestCluster } from "./cluster.ts";

/** A few: the lab has ten. */
const FLIPS = 3;

/** What is true in a lab, too: see mesh-bodies.ts and mesh-outages.ts. In permissive mode, as there. What takes a minute (controllers that are away) the lab alone shows. */
export function meshOnNodes(find: () => TestCluster): void {
  describe("the lab's tests", () => {
    let at: EnrolledScene;

    it("once both ends have been enrolled for the bound, no new connection has a byte in clear; without the label the capture finds them", async () => {
      at = await nothingIsClear(clusterMesh(find()));
    });

    it("kill -9 of the controllers, an agent and the API server fails no connection, old or new", (t) =>
      killsFailNothing(at, t, [{ role: "controller" }, { role: "agent", node: "node1" }, { role: "apiserver" }]));

    for (const node of ["node1", "node2"]) {
      it(`kill -9 of the proxy's data path on ${node} breaks its connections, refuses new ones, never in clear, and passes`, (t) =>
        killFailsClosed(at, t, () => at.mesh.kill("data path", node)));
    }

    it("proxies that are replaced beside each other fail no new connection, and reset those that outlast the drain", (t) =>
      replacedProxiesFailNothing(at, t));

    it("un-enrolling a pair that has been enrolled for longer than the bound breaks no connection, nor does enrolling it again", () =>
      unenrolmentFailsNothing(at));

    it("flips of the label break no connection: nothing reset, refused, lost or changed, as in a twin without flips", (t) =>
      flipsFailNothing(clusterMesh(find()), t, FLIPS));
  });
}
