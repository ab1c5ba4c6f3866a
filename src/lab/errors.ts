import { defineErrors } from "#base/errors";

/** Failures of the lab's infrastructure. Each hint is a thing to do. */
export const labError = defineErrors("lab", {
  LAB_NOT_ROOT: {
    when: "a lab was asked for without root",
    hint: "run it as root: sudo bin/veil lab up",
  },
  LAB_COMMAND_MISSING: {
    when: "a system program that the lab needs is not installed",
    hint: "install it: apt-get install iproute2 nftables util-linux (bin/veil does that by itself)",
  },
  LAB_COMMAND: {
    when: "a system program such as ip, unshare or mount failed",
    hint: "the message carries the program's own words; veil lab down removes what is there",
  },
  LAB_KERNEL: {
    when: "the kernel lacks something that the lab needs: namespaces, bridge, veth or nftables",
    hint: "load the module that the message names, or use a kernel that has it; in a container, run it privileged",
  },
  LAB_NAME: {
    when: "a lab's name is not 1 to 20 of a-z, 0-9 and -, beginning and ending with a letter or a digit",
    hint: "choose another --name",
  },
  LAB_NAME_TAKEN: {
    when: "the name belongs to something else: namespaces that no lab made, or a lab of another copy of Veil",
    hint: "choose another --name, or remove what is there with veil lab down --name and the same name",
  },
  LAB_NODES: {
    when: "the number of nodes is not between 1 and 40, or is less than the lab already has",
    hint: "correct --nodes; to shrink a lab, take it down and bring it up again",
  },
  LAB_PORT_IN_USE: {
    when: "the port on 127.0.0.1 for the API is in use",
    hint: "choose another --port, or leave the option out for a free one",
  },
  LAB_DISK_FULL: {
    when: "the file system under /run, or the lab's own memory file system, is full",
    hint: "make room in the folder that the message names, then run veil lab up again; veil lab down frees the lab's own",
  },
  LAB_BUSY: {
    when: "another veil lab command works on the same lab",
    hint: "wait until it has ended, or end it by the pid that the message names",
  },
  LAB_INSIDE: {
    when: "a lab was to be changed from a process inside it",
    hint: "run the command from a shell outside the lab",
  },
  LAB_NOT_UP: {
    when: "there is no lab of that name",
    hint: "bring it up: veil lab up",
  },
  LAB_NO_SUCH_PLACE: {
    when: "a node or pod to run a command in does not exist",
    hint: "veil lab status shows the nodes, veil kubectl get pods -A the pods",
  },
  LAB_ROLE_FAILED: {
    when: "a part of the lab did not become ready in time",
    hint: "read its log, which the message names, then run veil lab up again",
  },
  LAB_STATE: {
    when: "a file of the lab's state could not be read",
    hint: "take the lab down and bring it up again",
  },
  LAB_LEFT_BEHIND: {
    when: "something of a lab was still there after it was taken down",
    hint: "the message names it; run veil lab down again",
  },
});
