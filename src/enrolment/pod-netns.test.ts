import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { openNetns } from "#linux";
import { directoryFinder, procFinder } from "./pod-netns.ts";

const folder = mkdtempSync(join(tmpdir(), "vt-enrolment-"));
after(() => rmSync(folder, { recursive: true }));

test("a file named by the pod's UID is its namespace; a mere file, a missing one and a path are none", () => {
  symlinkSync("/proc/self/ns/net", join(folder, "uid-1"));
  writeFileSync(join(folder, "uid-2"), "");
  const finder = directoryFinder(folder);
  using own = openNetns("/proc/self/ns/net");
  using found = finder.find("uid-1");
  assert.equal(found?.key, own.key);
  for (const uid of ["uid-2", "uid-3", "../uid-1", "", "uid-1/"]) assert.equal(finder.find(uid), undefined, uid);
  assert.equal(directoryFinder("/nowhere").find("uid-1"), undefined);
});

test("the oldest process of the pod outside the node's own namespace decides", () => {
  const proc = join(folder, "proc");
  const uid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
  const process = (pid: string, cgroup: string, options: { startTicks: number; ns: string }): void => {
    mkdirSync(join(proc, pid, "ns"), { recursive: true });
    writeFileSync(join(proc, pid, "cgroup"), cgroup);
    writeFileSync(join(proc, pid, "stat"), `${pid} (a (b) c) S ${"0 ".repeat(18)}${options.startTicks} 0 0\n`);
    symlinkSync(options.ns, join(proc, pid, "ns", "net"));
  };
  // Any other kind of namespace stands for another network namespace: only device and inode are looked at.
  const [node, first, second] = ["/proc/self/ns/net", "/proc/self/ns/uts", "/proc/self/ns/ipc"];
  process("self", "", { startTicks: 1, ns: node });
  process("10", `0::/kubepods.slice/kubepods-pod${uid.replaceAll("-", "_")}.slice/x`, { startTicks: 900, ns: second });
  process("11", `1:cpu:/kubepods/pod${uid}/y`, { startTicks: 100, ns: node });
  process("12", `1:cpu:/kubepods/pod${uid}/y`, { startTicks: 200, ns: first });
  process("13", "0::/user.slice", { startTicks: 5, ns: second });
  // Version 2, seen from the agent's own namespace of groups.
  const apart = "2c5f39cb-2fa1-11d2-883f-0016d3cca427";
  const slice = `kubepods-burstable-pod${apart.replaceAll("-", "_")}.slice`;
  process("14", `0::/../../kubepods-burstable.slice/${slice}/cri-containerd-0a.scope`, { startTicks: 7, ns: second });
  using expected = openNetns(first);
  using found = procFinder(proc).find(uid);
  assert.equal(found?.key, expected.key);
  using other = openNetns(second);
  using foundApart = procFinder(proc).find(apart);
  assert.equal(foundApart?.key, other.key);
  assert.equal(procFinder(proc).find("1b4e28ba-0000-11d2-883f-0016d3cca427"), undefined);
  assert.equal(procFinder(proc).find(""), undefined);
});
