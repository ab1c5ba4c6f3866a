import { connect as connectHttp2 } from "node:http2";
import { connect as connectTls } from "node:tls";
import { systemClock } from "#base/clock";
import { startCapture, type Packet } from "#capture";
import { dial, netnsPath, type Pod, type ProxyWorld } from "./proxy-world.ts";

const clock = systemClock();

/** What is on the wire between the nodes, and on the server's and the client's own links, while `body` runs. */
export async function onTheWire(body: () => Promise<void>): Promise<Packet[]> {
  const places = [
    { netns: netnsPath("a"), interface: "vt-proxy-ul" },
    { netns: netnsPath("a"), interface: "v-client" },
    { netns: netnsPath("b"), interface: "v-server" },
  ];
  const captures = await Promise.all(places.map(async (place) => startCapture({ ...place, clock })));
  await body();
  return (await Promise.all(captures.map(async (capture) => capture.stop()))).flat();
}

/** A CONNECT that the pod `plain` sends with the client's certificate: the status, and what the application answers to `words`. */
export async function connectHbone(
  { client, a, plain }: ProxyWorld,
  to: Pod,
  request: { readonly authority: string; readonly words: string },
): Promise<{ status: number; answer: string }> {
  const identity = a.certificates.get(client.identity);
  const tls = connectTls({
    socket: await dial(plain, to.ip, 15_008),
    cert: identity?.chainPem,
    key: identity?.keyPem,
    ca: identity?.rootsPem,
    checkServerIdentity: () => undefined,
    ALPNProtocols: ["h2"],
  });
  const session = connectHttp2("https://peer", { createConnection: () => tls });
  session.on("error", () => undefined);
  const stream = session.request({ ":method": "CONNECT", ":authority": request.authority });
  stream.on("error", () => undefined);
  const status = await new Promise<number>((resolve) =>
    stream.once("response", (answered) => resolve(Number(answered[":status"]))),
  );
  let answer = "";
  if (status === 200) {
    stream.end(request.words);
    for await (const part of stream) answer += String(part);
  }
  session.destroy();
  return { status, answer };
}
