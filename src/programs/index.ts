export { podProgramsCommand, type CommandContext } from "./command.ts";
