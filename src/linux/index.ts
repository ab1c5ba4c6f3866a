export {
  protectionsInUse,
  RECORD_HEADER_BYTES,
  RECORD_OVERHEAD_BYTES,
  RecordProtection,
  type RecordSuite,
} from "./aead.ts";
export {
  deleteLink,
  findLink,
  listAddresses,
  listLinks,
  makeLink,
  makePersistentTun,
  setLink,
  type Link,
  type LinkAddress,
} from "./links.ts";
export { raiseLoopback } from "./loopback.ts";
export { adoptNetns, inNetns, openNetns, type Netns } from "./netns.ts";
export { readMemoryUse, type MemoryUse } from "./memory.ts";
export { collectGarbage, keepTidy } from "./tidy.ts";
export { prepareNetns } from "./netns-settings.ts";
export { dieWithParent } from "./parent.ts";
export { lowerHelpers, lowerPriority } from "./priority.ts";
export {
  connectSeqpacket,
  listenSeqpacket,
  MAX_PACKET_BYTES,
  SeqpacketConnection,
  type SeqpacketListener,
  type SeqpacketMessage,
} from "./seqpacket.ts";
export { addMarkRoute, removeMarkRoute, type MarkRoute } from "./mark-route.ts";
export { flushConntrack, listTables } from "./netfilter.ts";
export {
  addRule,
  deleteRoute,
  deleteRule,
  listRoutes,
  listRules,
  MAIN_TABLE,
  replaceRoute,
  type Route,
  type RoutingRule,
} from "./routes.ts";
export { askNetlink, encodeAttribute, encodeNumber, NETLINK, NLM_F } from "./netlink.ts";
export { runCommand, runNft, type CommandOutcome, type SystemCommand } from "./nft.ts";
export type { ByteStream, StreamOwner, WriteOutcome } from "./byte-stream.ts";
export { findWrongShape, refusedPeer } from "./raw-stream.ts";
export type { SocketAddress } from "./socket-options.ts";
export {
  connectTcp,
  listenTcp,
  socketPath,
  publicTlsStream,
  TcpSocket,
  useSocketPath,
  type ConnectOptions,
  type ListenOptions,
  type SocketPath,
  type TcpListener,
} from "./tcp.ts";
export { ADDRESS_IN_USE, isPortShared, openListener } from "./listener.ts";
export {
  connectUdp,
  listenUdp,
  type UdpConnection,
  type UdpHandlers,
  type UdpListener,
  type UdpOptions,
} from "./udp.ts";
