export {
  jsonPage,
  PageServer,
  readyPage,
  statusPages,
  textPage,
  type Page,
  type PageRequest,
  type StatusPages,
} from "./page-server.ts";
export { RpcServer, type RpcListen, type RpcServerOptions } from "./server.ts";
export { rpcTransport, type RpcTransportOptions } from "./transport.ts";
