import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { describe, it } from "node:test";
import { decode, encode, type Answer } from "dns-packet";
import { parseIp } from "#base/ip";
import { dnsResolver, NameCache } from "./names.ts";

const RECORDS: Readonly<Record<string, readonly Answer[]>> = {
  "A api.example.com": [
    { type: "A", name: "api.example.com", ttl: 30, data: "192.0.2.7" },
    { type: "A", name: "api.example.com", ttl: 20, data: "192.0.2.8" },
  ],
  "AAAA api.example.com": [{ type: "AAAA", name: "api.example.com", ttl: 60, data: "2001:db8::7" }],
  "A hasty.example.com": [{ type: "A", name: "hasty.example.com", ttl: 0, data: "192.0.2.9" }],
  "A lasting.example.com": [{ type: "A", name: "lasting.example.com", ttl: 86_400, data: "192.0.2.10" }],
};

/** What the resolver says while a name server with `RECORDS` answers it. */
async function lookUp(...hostnames: string[]) {
  const socket = createSocket("udp4");
  socket.on("message", (query, from) => {
    const { id, questions = [] } = decode(query);
    const answers = questions.flatMap(({ type, name }) => RECORDS[`${type} ${name}`] ?? []);
    const code = answers.length > 0 ? 0 : 3;
    socket.send(
      encode({ type: "response", id, flags: code, questions, answers: [...answers] }),
      from.port,
      from.address,
    );
  });
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  const resolve = dnsResolver([`127.0.0.1:${socket.address().port}`]);
  const answers = await Promise.all(hostnames.map(async (hostname) => resolve(hostname)));
  socket.close();
  return answers;
}

describe("dnsResolver", () => {
  it("finds addresses of both families, for as long as the shortest of them is valid", async () => {
    const [answer] = await lookUp("api.example.com");
    assert.deepEqual([...(answer?.addresses ?? [])].sort(), ["192.0.2.7", "192.0.2.8", "2001:db8::7"]);
    assert.equal(answer?.ttlMs, 20_000);
  });

  it("keeps an answer for a second at least and five minutes at most", async () => {
    const [hasty, lasting] = await lookUp("hasty.example.com", "lasting.example.com");
    assert.deepEqual([hasty?.ttlMs, lasting?.ttlMs], [1_000, 300_000]);
  });

  it("says that a name has no address when nobody knows it, and remembers that for a second", async () => {
    assert.deepEqual(await lookUp("nowhere.example.com"), [{ addresses: [], ttlMs: 1_000 }]);
  });
});

describe("NameCache", () => {
  const addresses = [parseIp("192.0.2.7")];

  it("forgets an answer when its time is over", () => {
    const cache = new NameCache();
    cache.put("a", { addresses, ttlMs: 1_000 }, 5_000);
    assert.deepEqual(cache.find("a", 5_999), addresses);
    assert.equal(cache.find("a", 6_000), undefined);
    assert.equal(cache.find("b", 5_000), undefined);
  });

  it("forgets the oldest of 4,096 names for the next", () => {
    const cache = new NameCache();
    for (let i = 0; i <= 4096; i++) cache.put(`name-${i}`, { addresses, ttlMs: 1_000 }, 0);
    assert.equal(cache.find("name-0", 0), undefined);
    assert.deepEqual(cache.find("name-1", 0), addresses);
    assert.deepEqual(cache.find("name-4096", 0), addresses);
  });
});
