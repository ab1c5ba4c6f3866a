export { createAgent, type Agent } from "./agent.ts";
export type { AgentOptions } from "./options.ts";
