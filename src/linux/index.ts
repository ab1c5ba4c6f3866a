export { adoptNetns, inNetns, openNetns, type Netns } from "./netns.ts";
export {
  connectSeqpacket,
  listenSeqpacket,
  MAX_PACKET_BYTES,
  SeqpacketConnection,
  type SeqpacketListener,
  type SeqpacketMessage,
} from "./seqpacket.ts";
