export { runRole, type CliContext } from "./context.ts";
export { buildProgram } from "./program.ts";
