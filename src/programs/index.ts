export { runClient, type ClientOptions } from "./client.ts";
export { httpEcho, tcpEcho, udpEcho, type ProgramContext, type ServerOptions } from "./echo-servers.ts";
