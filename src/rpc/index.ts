export { RpcServer, type RpcListen, type RpcServerOptions } from "./server.ts";
export { rpcTransport, type RpcTransportOptions } from "./transport.ts";
