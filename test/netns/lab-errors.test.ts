import assert from "node:assert/strict";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { leftoversOf, linksAndRules } from "./lab-leftovers.ts";
import { must, requireRoot, run, veil, VEIL } from "./harness.ts";

const NAME = "vt-lab-errors";

describe("a lab that cannot be made", () => {
  requireRoot();
  const before = linksAndRules();
  after(() => must([VEIL, "lab", "down", "--name", NAME]));

  it("says in one sentence that root is needed", async () => {
    const { code, stderr } = await run([
      "setpriv",
      "--reuid=65534",
      "--clear-groups",
      VEIL,
      "lab",
      "up",
      "--name",
      NAME,
    ]);
    assert.equal(code, 1);
    assert.match(stderr, /needs root\n.*sudo bin\/veil lab up \(LAB_NOT_ROOT\)/);
  });

  it("names the program that is missing", async () => {
    const folder = mkdtempSync(join(tmpdir(), "vt-lab-path-"));
    try {
      for (const program of ["readlink", "id", "cmp", "unshare", "mount", "umount", "tcpdump"]) {
        symlinkSync((await must(["sh", "-c", `command -v ${program}`])).trim(), join(folder, program));
      }
      const { code, stderr } = await run([VEIL, "lab", "up", "--name", NAME], { env: { PATH: folder } });
      assert.equal(code, 1);
      assert.match(stderr, /cannot find nsenter\n.*apt-get install.*LAB_COMMAND_MISSING/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("names what the kernel lacks, and leaves nothing", async () => {
    const folder = mkdtempSync(join(tmpdir(), "vt-lab-path-"));
    try {
      const real = (await must(["sh", "-c", "command -v ip"])).trim();
      // An `ip` on a kernel without bridges.
      const script = `#!/bin/sh
lines=$(cat)
case "$lines" in *bridge*) echo "Error: Unknown device type." >&2; exit 2 ;; esac
printf '%s\\n' "$lines" | exec ${real} "$@"
`;
      writeFileSync(join(folder, "ip"), script, { mode: 0o755 });
      const env = { PATH: `${folder}:${process.env["PATH"]}` };
      const { code, stderr } = await run([VEIL, "lab", "up", "--name", NAME], { env });
      assert.equal(code, 1);
      assert.match(stderr, /Unknown device type[^]*load the module[^]*LAB_KERNEL/);
      assert.deepEqual(leftoversOf(NAME), []);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("names the port that is in use, and leaves nothing", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => server.once("listening", resolve));
    const address = server.address();
    assert.ok(typeof address === "object" && address !== null);
    const { code, stderr } = await veil("lab", "up", "--name", NAME, "--port", String(address.port));
    server.close();
    assert.equal(code, 1);
    assert.match(
      stderr,
      new RegExp(`port ${address.port} on 127.0.0.1 is in use[^]*another --port[^]*LAB_PORT_IN_USE`),
    );
    assert.deepEqual(leftoversOf(NAME), []);
  });

  it("does not touch namespaces of its name that no lab has made", async () => {
    await must(["ip", "netns", "add", `veil-${NAME}-node1`]);
    const { code, stderr } = await veil("lab", "up", "--name", NAME);
    assert.equal(code, 1);
    assert.match(stderr, /LAB_NAME_TAKEN/);
    assert.equal(leftoversOf(NAME).length, 1);
    await must([VEIL, "lab", "down", "--name", NAME]);
    assert.deepEqual(leftoversOf(NAME), []);
  });

  for (const [words, said] of [
    [["lab", "up", "--name", "A/B"], /LAB_NAME\b/],
    [["lab", "up", "--name", NAME, "--nodes", "41"], /LAB_NODES/],
    [["lab", "up", "--name", NAME, "--nodes", "0"], /LAB_NODES/],
    [["lab", "status", "--name", NAME], /no lab[^]*veil lab up[^]*LAB_NOT_UP/],
    [["lab", "exec", "--name", NAME, "node1", "--", "true"], /LAB_NOT_UP/],
    [["lab", "env", "--name", NAME], /LAB_NOT_UP/],
  ] as const) {
    it(`veil ${words.join(" ")} fails with a reason`, async () => {
      const { code, stderr, stdout } = await veil(...words);
      assert.equal(code, 1, stdout);
      assert.match(stderr, said);
    });
  }

  for (const [words, said] of [
    [["lab", "upp"], /Did you mean up\?/],
    [["lab", "up", "--node", "3"], /Did you mean --nodes\?/],
    [["lab", "up", "--nodes", "two"], /whole number/],
    [["lab", "status", "-o", "xml"], /Allowed choices are text, json/],
    [["lab", "exec"], /missing required argument/],
  ] as const) {
    it(`veil ${words.join(" ")} is wrong usage`, async () => {
      const { code, stderr } = await veil(...words);
      assert.equal(code, 2);
      assert.match(stderr, said);
    });
  }

  it("has nothing to take down, and says so with success", async () => {
    const { code, stdout } = await veil("lab", "down", "--name", NAME, "-o", "json");
    assert.equal(code, 0);
    assert.deepEqual(JSON.parse(stdout), { name: NAME, removed: { processes: 0, namespaces: 0, folders: 0 } });
  });

  it("has left no link and no rule where it was called", () => {
    assert.equal(linksAndRules(), before);
  });
});
