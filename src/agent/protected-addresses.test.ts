import assert from "node:assert/strict";
import { test } from "node:test";
import { create, toBinary } from "@bufbuild/protobuf";
import { ipToBytes, parseIp, type IpAddress } from "#base/ip";
import { silentLog } from "#base/log";
import { AddressSchema, TunnelProtocol } from "#proto/gen/istio/workload/workload_pb.js";
import { TYPE_ADDRESS, type CachedResource, type ResourceUpdate } from "#xds";
import { ProtectedAddresses } from "./protected-addresses.ts";

const [one, two] = [parseIp("10.244.1.5"), parseIp("10.244.2.5")];

/** The kernel's set, and what was done to it. */
function fakeSet() {
  const members = new Set<IpAddress>();
  const done: string[] = [];
  return {
    members,
    done,
    setEnrolled: (addresses: readonly IpAddress[]) => {
      done.push("set");
      members.clear();
      for (const ip of addresses) members.add(ip);
      return Promise.resolve();
    },
    changeEnrolled: (joined: readonly IpAddress[], left: readonly IpAddress[]) => {
      done.push("change");
      for (const ip of left) members.delete(ip);
      for (const ip of joined) members.add(ip);
      return Promise.resolve();
    },
  };
}

function workload(uid: string, ip: IpAddress, hbone: boolean): CachedResource {
  const value = {
    uid,
    name: uid,
    namespace: "shop",
    addresses: [ipToBytes(ip)],
    tunnelProtocol: hbone ? TunnelProtocol.HBONE : TunnelProtocol.NONE,
  };
  const bytes = toBinary(AddressSchema, create(AddressSchema, { type: { case: "workload", value } }));
  return { typeUrl: TYPE_ADDRESS, name: uid, version: "1", aliases: [], value: bytes };
}

function update(upserts: readonly CachedResource[], removes: readonly string[] = []): ResourceUpdate {
  return { typeUrl: TYPE_ADDRESS, upserts, removes };
}

function subject() {
  const set = fakeSet();
  return { set, gate: new ProtectedAddresses(set, silentLog()) };
}

test("what an earlier agent has left is made equal to the first answer; a pod joins before proxies hear of it", async () => {
  const { set, gate } = subject();
  set.members.add(parseIp("10.244.9.9"));
  await gate.before(update([workload("a", one, true), workload("b", two, false)]));
  assert.deepEqual([...set.members], [one]);
  await gate.before(update([workload("b", two, true)]));
  assert.deepEqual([...set.members], [one, two]);
  assert.deepEqual(set.done, ["set", "change"]);
});

test("a pod that is not enrolled any more leaves when the proxies have confirmed it, unless it is enrolled again", async () => {
  const { set, gate } = subject();
  await gate.before(update([workload("a", one, true), workload("b", two, true)]));
  const plain = update([workload("a", one, false)], ["b"]);
  await gate.before(plain);
  assert.deepEqual([...set.members], [one, two]);
  await gate.before(update([workload("b", two, true)]));
  await gate.after(plain);
  assert.deepEqual([...set.members], [two]);
});

test("an address that is now that of a pod which is not enrolled leaves at once", async () => {
  const { set, gate } = subject();
  await gate.before(update([workload("a", one, true)]));
  const taken = update([workload("c", one, false)], ["a"]);
  await gate.before(taken);
  assert.deepEqual([...set.members], []);
  await gate.after(taken);
  assert.deepEqual([...set.members], []);
});

test("an address that goes from one enrolled pod to another stays", async () => {
  const { set, gate } = subject();
  await gate.before(update([workload("a", one, true)]));
  const moved = update([workload("d", one, true)], ["a"]);
  await gate.before(moved);
  await gate.after(moved);
  assert.deepEqual([...set.members], [one]);
});

test("what cannot be read, services and other types change nothing; a kernel that refuses does not stop the update", async () => {
  const { set, gate } = subject();
  await gate.before(update([{ ...workload("a", one, true), value: Uint8Array.of(255) }]));
  await gate.before({ ...update([workload("a", one, true)]), typeUrl: "other" });
  assert.deepEqual([...set.members], []);
  const failing = new ProtectedAddresses(
    { ...set, setEnrolled: () => Promise.reject(new Error("no nft")) },
    silentLog(),
  );
  await failing.before(update([workload("a", one, true)]));
});
