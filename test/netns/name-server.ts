/**
 * A name server on 127.0.0.1 port 53 of its namespace, for tests: `node name-server.ts name=address…`. It knows these names
 * and no others. Prints `ready` when it answers.
 */
import { createSocket } from "node:dgram";
import { decode, encode, type Answer } from "dns-packet";

const known = new Map(
  process.argv.slice(2).map((entry): [string, string] => [entry.split("=")[0] ?? "", entry.split("=")[1] ?? ""]),
);
const socket = createSocket("udp4");
socket.on("message", (query, from) => {
  const { id, questions = [] } = decode(query);
  const answers = questions.flatMap(({ type, name }): Answer[] => {
    const data = known.get(name);
    return type === "A" && data !== undefined ? [{ type, name, ttl: 30, data }] : [];
  });
  const isKnown = questions.some(({ name }) => known.has(name));
  socket.send(encode({ type: "response", id, flags: isKnown ? 0 : 3, questions, answers }), from.port, from.address);
});
socket.bind(53, "127.0.0.1", () => process.stdout.write("ready\n"));
