import { hboneError } from "./errors.ts";
import {
  DEFAULT_MAX_FRAME,
  DEFAULT_WINDOW,
  FRAME,
  LARGEST_WINDOW,
  MAX_FRAME_BYTES,
  PREFACE,
  putUint32,
  SESSION_WINDOW_BYTES,
  SETTING,
  STREAM_WINDOW_BYTES,
} from "./frames.ts";
import type { HboneLimits } from "./limits.ts";
import type { Tunnel } from "./tunnel.ts";
import type { SessionWriter } from "./writer.ts";

/** No peer has so much to say; each setting costs us, and the peer six bytes. */
const MOST_SETTINGS = 32;

/** How a session begins: the preface (client), our settings, and the session's window. */
export function sendPreface(writer: SessionWriter, role: "client" | "server", limits: HboneLimits): void {
  if (role === "client") writer.raw(PREFACE);
  const settings: [number, number][] = [
    [SETTING.INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES],
    [SETTING.MAX_FRAME_SIZE, MAX_FRAME_BYTES],
    role === "server" ? [SETTING.MAX_CONCURRENT_STREAMS, limits.streamsPerPeer] : [SETTING.ENABLE_PUSH, 0],
    [SETTING.MAX_HEADER_LIST_SIZE, role === "server" ? limits.serverHeaderBytes : limits.clientHeaderBytes],
  ];
  let at = writer.control({ type: FRAME.SETTINGS, flags: 0, streamId: 0, length: settings.length * 6 });
  for (const [id, value] of settings) {
    writer.buffer[at] = 0;
    writer.buffer[at + 1] = id;
    putUint32(writer.buffer, at + 2, value);
    at += 6;
  }
  writer.control32(FRAME.WINDOW_UPDATE, 0, SESSION_WINDOW_BYTES - DEFAULT_WINDOW);
}

/** What a peer's SETTINGS frame says, as far as it matters to us. */
export interface PeerSettings {
  readonly headerTableBytes: number | undefined;
  readonly maxStreams: number | undefined;
  readonly initialWindow: number | undefined;
  readonly maxFrame: number | undefined;
}

/**
 * Reads a SETTINGS frame. Throws `HBONE_PROTOCOL` or `HBONE_FLOW_CONTROL` for a value that is not allowed, `HBONE_FLOOD`
 * for too many.
 */
export function readSettings(
  settings: readonly (readonly [number, number])[],
  from: "client" | "server",
): PeerSettings {
  if (settings.length > MOST_SETTINGS) {
    throw hboneError("HBONE_FLOOD", `a SETTINGS frame has ${settings.length} settings`);
  }
  const values = new Map(settings);
  const initialWindow = values.get(SETTING.INITIAL_WINDOW_SIZE);
  if ((initialWindow ?? 0) > LARGEST_WINDOW) {
    throw hboneError("HBONE_FLOW_CONTROL", `an initial window of ${initialWindow} is too large`);
  }
  const maxFrame = values.get(SETTING.MAX_FRAME_SIZE);
  if (maxFrame !== undefined && (maxFrame < DEFAULT_MAX_FRAME || maxFrame > 0xff_ffff)) {
    throw hboneError("HBONE_PROTOCOL", `a frame size of ${maxFrame} is not allowed`);
  }
  if ((values.get(SETTING.ENABLE_PUSH) ?? 0) > (from === "client" ? 1 : 0)) {
    throw hboneError("HBONE_PROTOCOL", "ENABLE_PUSH is not what it may be");
  }
  return {
    headerTableBytes: values.get(SETTING.HEADER_TABLE_SIZE),
    maxStreams: values.get(SETTING.MAX_CONCURRENT_STREAMS),
    initialWindow,
    maxFrame: maxFrame === undefined ? undefined : Math.min(maxFrame, MAX_FRAME_BYTES),
  };
}

/**
 * The peer has changed the window that its tunnels begin with: open ones change by the difference, below 0 if need be
 * (RFC 9113 §6.9.2). Throws `HBONE_FLOW_CONTROL`.
 */
export function changeWindows(tunnels: Iterable<Tunnel>, writer: SessionWriter, initialWindow: number): void {
  const change = initialWindow - writer.peerInitialWindow;
  writer.peerInitialWindow = initialWindow;
  for (const { id, uplink } of tunnels) {
    if (uplink.window + change > LARGEST_WINDOW) {
      throw hboneError("HBONE_FLOW_CONTROL", `the peer's new settings overflow the window of stream ${id}`);
    }
    uplink.addWindow(change);
  }
}
