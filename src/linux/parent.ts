import { checkCall, libc } from "./libc.ts";

const PR_SET_PDEATHSIG = 1;
const SIGKILL = 9;
const prctlCall = libc.func("int prctl(int option, unsigned long argument)");

/**
 * Has the kernel kill this process when its parent dies, however that dies. `parentPid` is the parent as the parent itself
 * knows it: answers false when it is dead already, and the caller must leave.
 */
export function dieWithParent(parentPid: number): boolean {
  checkCall("prctl PR_SET_PDEATHSIG", Number(prctlCall(PR_SET_PDEATHSIG, SIGKILL)));
  return process.ppid === parentPid;
}
