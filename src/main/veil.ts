/**
 * The entry point of `veil …`. `veil proxy` is a supervisor that outlives the processes that do the work: it loads none
 * of the commands (its children read the flags), which makes its start shorter and what it holds less.
 */
const [, , command, ...flags] = process.argv;
const isSupervisor = command === "proxy" && !flags.some((flag) => /^(--child-of|--help|-h)(=|$)/.test(flag));
await(isSupervisor ? import("./supervisor.ts") : import("./command.ts"));
