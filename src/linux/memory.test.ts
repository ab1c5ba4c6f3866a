import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test, type TestContext } from "node:test";
import { libc } from "./libc.ts";
import { readMemoryUse, trimMemory } from "./memory.ts";

/** Files below a folder that goes with the test; what is read of them. */
function readIn(t: TestContext, files: Readonly<Record<string, string>>): ReturnType<typeof readMemoryUse> {
  const folder = mkdtempSync(join(tmpdir(), "vt-life-"));
  t.after(() => rmSync(folder, { recursive: true }));
  for (const [file, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    writeFileSync(join(folder, file), text);
  }
  return readMemoryUse(join(folder, "fs"), join(folder, "proc"));
}

/** A group's files. */
function version1(path: string, limit: string, used: number): Record<string, string> {
  const group = `fs/memory${path}`;
  return {
    [`${group}/memory.limit_in_bytes`]: `${limit}\n`,
    [`${group}/memory.usage_in_bytes`]: `${used}\n`,
    [`${group}/memory.stat`]: "cache 5\ninactive_file 7\ntotal_inactive_file 100\n",
  };
}

function version2(path: string, limit: string, used: number): Record<string, string> {
  const group = `fs${path}`;
  return {
    [`${group}/memory.max`]: `${limit}\n`,
    [`${group}/memory.current`]: `${used}\n`,
    [`${group}/memory.stat`]: "anon 5\ninactive_file 50\nactive_file 8\n",
  };
}

const POD = "/kubepods/burstable/pod1b4e28ba-2fa1-11d2-883f-0016d3cca427/0a1b";
const V1_LINES = `12:cpuset:${POD}\n9:hugetlb,memory:${POD}\n1:name=systemd:${POD}\n0::/system.slice/containerd.service\n`;

/** Files, and the use and limit that they say. Caches do not count as used. */
const ROWS: readonly (readonly [what: string, files: Record<string, string>, used?: number, limit?: number])[] = [
  ["no control group", {}],
  ["version 1, no limit", { "proc/cgroup": "4:memory:/\n", ...version1("", "9223372036854771712", 700) }],
  [
    "version 1, a container, whose own group is the root",
    { "proc/cgroup": V1_LINES, ...version1("", "1000", 700) },
    600,
    1000,
  ],
  ["version 1, a process of the node", { "proc/cgroup": V1_LINES, ...version1(POD, "1000", 700) }, 600, 1000],
  ["version 2, no limit", { "proc/cgroup": "0::/\n", ...version2("", "max", 300) }],
  [
    "version 2, a container with a namespace of groups",
    { "proc/cgroup": "0::/\n", ...version2("", "500", 300) },
    250,
    500,
  ],
  [
    "version 2, a unit of systemd, of a slice with room",
    {
      "proc/cgroup": "0::/system.slice/veil-proxy.service\n",
      ...version2("/system.slice/veil-proxy.service", "500", 300),
      ...version2("/system.slice", "9000", 4000),
    },
    250,
    500,
  ],
  [
    "version 2, a slice that is nearer to its limit than its unit",
    {
      "proc/cgroup": "0::/system.slice/veil-proxy.service\n",
      ...version2("/system.slice/veil-proxy.service", "max", 300),
      ...version2("/system.slice", "9000", 8050),
    },
    8000,
    9000,
  ],
  [
    "version 2, a group of another namespace",
    { "proc/cgroup": "0::/../../other\n", ...version2("", "500", 300) },
    250,
    500,
  ],
  [
    "both, as hybrids have it: memory is where its controller is",
    { "proc/cgroup": V1_LINES, "fs/unified/cgroup.procs": "1\n", ...version1("", "1000", 700) },
    600,
    1000,
  ],
  ["nothing of /proc", version2("", "500", 300), 250, 500],
];

for (const [what, files, usedBytes, limitBytes] of ROWS) {
  test(`memory and its limit are read from control groups: ${what}`, (t) => {
    assert.deepEqual(readIn(t, files), limitBytes === undefined ? undefined : { usedBytes, limitBytes });
  });
}

test("memory that was freed between what is used goes back to the kernel", () => {
  const allocate = libc.func("void *calloc(size_t count, size_t size)");
  const write = libc.func("void *memset(void *block, int byte, size_t size)");
  const free = libc.func("void free(void *block)");
  const size = 64 << 10; // below what is mapped on its own
  const blocks = Array.from({ length: 1024 }, () => write(allocate(1, size), 1, size) as unknown);
  for (const block of blocks.slice(0, -1)) free(block);
  const before = process.memoryUsage.rss();
  trimMemory();
  const after = process.memoryUsage.rss();
  free(blocks.at(-1)); // above the hole: without it the C library would have given all back by itself
  assert.ok(before - after > 32 << 20, `${before - after} bytes went back`);
});
