import { after, before, describe, it } from "node:test";
import { VersionChanges } from "./version-changes.ts";

/** Of what can be carried. bench/upgrade.ts asks for half: then a change takes longer, as the roles' starts need the processors, too. */
const SHARE = 0.1;

describe("a change of versions under load", () => {
  let changes: VersionChanges;
  before(async () => {
    changes = await VersionChanges.start(SHARE);
  });
  after(() => changes?.[Symbol.asyncDispose]());

  it("breaks no connection on the way up, and shows none in clear", async (t) => {
    const up = await changes.up();
    t.diagnostic(changes.figures(up));
    changes.assertUnnoticed(up);
  });

  it("breaks none on the way back, and shows none in clear", async (t) => {
    const down = await changes.down();
    t.diagnostic(changes.figures(down));
    changes.assertUnnoticed(down);
  });
});
