import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { FakeClock } from "#base/clock";
import { MailboxReader, MailboxSender } from "./mailbox.ts";

/** Both ends on this thread; messages are told by their names. */
function rig() {
  const clock = new FakeClock();
  const sender = new MailboxSender();
  const got: string[] = [];
  const reader = new MailboxReader(sender.start, clock, (message) => {
    if (message.type === "answer") got.push(message.name);
  });
  const post = (...names: readonly string[]): void => {
    for (const name of names) sender.post({ type: "answer", name, answer: "absent" });
  };
  /** A message that wakes the reader arrives in a turn that nobody names. */
  const woken = async (count: number): Promise<void> => {
    while (got.length < count) await new Promise((resolve) => setImmediate(resolve));
  };
  return { clock, sender, reader, got, post, woken, end: () => sender.close() };
}

describe("the mailbox of a data thread", () => {
  it("wakes a thread that listens, and hands everything over in order", async () => {
    const { got, post, woken, end } = rig();
    post("a", "b", "c");
    await woken(3);
    assert.deepEqual(got, ["a", "b", "c"]);
    end();
  });

  it("wakes no thread that looks: it finds what has come, in order", async () => {
    const { clock, got, post, woken, end } = rig();
    post("a");
    await woken(1);
    for (const round of [1, 2, 3]) {
      post(`b${round}`, `c${round}`);
      for (let turns = 0; turns < 20; turns++) await new Promise((resolve) => setImmediate(resolve));
      assert.equal(got.length, 2 * round - 1, "nothing arrives by itself");
      await clock.advance(2);
    }
    assert.deepEqual(got, ["a", "b1", "c1", "b2", "c2", "b3", "c3"]);
    end();
  });

  it("listens again when nothing has come for a while, and loses nothing on the way", async () => {
    const { clock, got, post, woken, end } = rig();
    const names: string[] = [];
    for (let looks = 45; looks < 56; looks++) {
      post(`before ${looks}`);
      await woken(names.push(`before ${looks}`));
      for (let look = 0; look < looks; look++) await clock.advance(2);
      post(`after ${looks}`);
      names.push(`after ${looks}`);
      await clock.advance(2);
      await woken(names.length);
      assert.deepEqual(got, names);
      for (let look = 0; look < 60; look++) await clock.advance(2);
    }
    end();
  });

  it("shows how many batches of records were taken", () => {
    const { sender, reader, end } = rig();
    sender.recordsTaken();
    sender.recordsTaken();
    assert.equal(reader.recordsTaken, 2);
    end();
  });
});
