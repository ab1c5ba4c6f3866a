import assert from "node:assert/strict";
import { test } from "node:test";
import { commonSlab } from "./buffers.ts";
import { connectFrame as connect, fakeSession as make, FakeSocket, frame, untilWritten } from "./fake-session.ts";
import { FRAME } from "./frames.ts";

test("many small frames at a time do not give a session a slab of its own, many bytes do until they end", async () => {
  const { stream, role, session } = make();
  const ids = Array.from({ length: 100 }, (_, index) => 1 + 2 * index);
  stream.put(Buffer.concat(ids.map((id) => connect(id))));
  for (const tunnel of role.tunnels) tunnel.attach(new FakeSocket());
  const answers = Buffer.concat(ids.map((id) => frame(FRAME.DATA, id, Buffer.alloc(250))));
  assert.ok(answers.length > 16 * 1024);
  stream.put(answers);
  assert.ok(session.intake.slab === commonSlab);
  stream.put(frame(FRAME.DATA, 1, Buffer.alloc(32 * 1024)));
  assert.ok(session.intake.slab !== commonSlab);
  await untilWritten();
  for (const id of ids) stream.put(frame(FRAME.DATA, id, Buffer.alloc(250)));
  assert.ok(session.intake.slab === commonSlab);
});
