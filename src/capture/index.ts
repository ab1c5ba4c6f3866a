export { decodePcap, type Packet } from "./pcap.ts";
export { findWords, readTls, tcpStreams, type Stream, type TlsView } from "./streams.ts";
export { startCapture, type Capture, type CaptureOptions } from "./tcpdump.ts";
