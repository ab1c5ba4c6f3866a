import { createSocket } from "node:dgram";
import { get } from "node:http";
import { connect } from "node:net";
import type { RecordType } from "dns-packet";
import { systemClock } from "#base/clock";
import { dnsQuestion, readAnswer } from "../../src/dns/testing.ts";

// Runs inside a pod. Each argument is a question: `udp|tcp TYPE NAME` asks the nameserver at 10.96.0.10 as it is, `http URL` fetches a page
// by the C library's names, `watch NAME MS` asks over and over until there were no answers and then
// there are again, or the time is over, and tells for how long nobody answered. Prints one line of JSON for each.
const NAMESERVER = "10.96.0.10";
const clock = systemClock();

async function askUdp(question: Buffer, timeoutMs: number): Promise<Buffer | undefined> {
  const socket = createSocket("udp4");
  const answer = await new Promise<Buffer | undefined>((done) => {
    clock.after(timeoutMs, () => done(undefined));
    socket.on("message", done).on("error", () => done(undefined));
    socket.connect(53, NAMESERVER, () => socket.send(question, () => {}));
  });
  socket.close();
  return answer;
}

async function askTcp(question: Buffer): Promise<Buffer | undefined> {
  const socket = connect(53, NAMESERVER);
  const framed = Buffer.alloc(2 + question.length);
  framed.writeUInt16BE(question.length);
  question.copy(framed, 2);
  socket.write(framed);
  return new Promise((done) => {
    let all = Buffer.alloc(0);
    socket.on("error", () => done(undefined)).on("close", () => done(undefined));
    socket.on("data", (chunk) => {
      all = Buffer.concat([all, chunk]);
      if (all.length < 2 || all.length < 2 + all.readUInt16BE(0)) return;
      done(all.subarray(2));
      socket.destroy();
    });
  });
}

function describe(answer: Buffer | undefined): object {
  if (answer === undefined) return { rcode: "none", ours: false, answers: [] };
  const { packet, texts } = readAnswer(answer);
  return { rcode: Reflect.get(packet, "rcode") as string, ours: packet.flag_aa, answers: texts };
}

async function page(url: string): Promise<object> {
  return new Promise((done) => {
    get(url, { timeout: 10_000 }, (response) => {
      response.setEncoding("utf8").on("data", (body: string) => done({ status: response.statusCode, body }));
    }).on("error", (error) => done({ error: error.message }));
  });
}

/** Answers in a row that show that all is well again. */
const WELL = 20;

/** The longest time between two answers, how many questions got none, and how many in a row got one since. */
async function watch(name: string, ms: number): Promise<object> {
  const endMs = clock.monotonic() + ms;
  let lastMs = clock.monotonic();
  let longestMs = 0;
  let unanswered = 0;
  let answersSince = 0;
  while (clock.monotonic() < endMs && (unanswered === 0 || answersSince < WELL)) {
    const answer = await askUdp(dnsQuestion(name), 200);
    if (answer === undefined) {
      unanswered++;
      answersSince = 0;
    } else {
      answersSince++;
      longestMs = Math.max(longestMs, clock.monotonic() - lastMs);
      lastMs = clock.monotonic();
    }
    await new Promise((done) => clock.after(10, () => done(undefined)));
  }
  return { longestMs: Math.round(longestMs), unanswered, answersSince };
}

for (const question of process.argv.slice(2)) {
  const [how = "", what = "", more = ""] = question.split(" ");
  const asked = (): Buffer => dnsQuestion(more, what as RecordType);
  if (how === "udp") process.stdout.write(`${JSON.stringify(describe(await askUdp(asked(), 10_000)))}\n`);
  else if (how === "tcp") process.stdout.write(`${JSON.stringify(describe(await askTcp(asked())))}\n`);
  else if (how === "http") process.stdout.write(`${JSON.stringify(await page(what))}\n`);
  else process.stdout.write(`${JSON.stringify(await watch(what, Number(more)))}\n`);
}
process.exit(0);
