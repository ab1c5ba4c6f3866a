import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { FakeClock } from "#base/clock";
import { findAccessRecord } from "#model/access-log";
import type { FlowRecord } from "#model/flow";
import { parseSpiffeId } from "#model/spiffe-id";
import type { Facts } from "./pairs.ts";
import { FlowLog } from "./record.ts";
import { testAddress, testService, testWorkload } from "./testing.ts";

const facts: Facts = {
  source: {
    address: testAddress("10.1.0.1:4000"),
    workload: testWorkload("client", "10.1.0.1"),
    identity: parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client"),
  },
  destination: {
    address: testAddress("10.1.0.2:15008"),
    workload: testWorkload("server", "10.1.0.2"),
    identity: parseSpiffeId("spiffe://cluster.local/ns/shop/sa/server"),
  },
  service: testService("web", "10.96.0.1"),
  hboneTarget: "10.1.0.2:8080",
  encryption: "mutual_tls",
  reason: "ok",
};

function newLog(): { log: FlowLog; records: FlowRecord[]; clock: FakeClock; total: (name: string) => number } {
  const clock = new FakeClock(1_000);
  const records: FlowRecord[] = [];
  const log = new FlowLog(clock, (line) => {
    const record = findAccessRecord(line);
    if (record !== undefined) records.push(record);
  });
  const total = (name: string): number =>
    log.snapshot().reduce((sum, sample) => sum + (sample.name === name ? sample.value : 0), 0);
  return { log, records, clock, total };
}

describe("ConnectionRecord", () => {
  it("writes one record with who, to whom, how, how much and how long", async () => {
    const { log, records, clock } = newLog();
    const record = log.begin("outbound");
    record.open(facts, () => ({ sent: 10, received: 20 }));
    await clock.advance(250);
    record.close({ sent: 10, received: 20 });
    record.close({ sent: 0, received: 0 }, { reason: "reset", detail: "again" });
    assert.deepEqual(records, [
      {
        timeMs: 1_250,
        direction: "outbound",
        verdict: "forwarded",
        encryption: "mutual_tls",
        reason: "ok",
        detail: "",
        traceId: undefined,
        source: {
          address: "10.1.0.1:4000",
          workload: "client",
          namespace: "shop",
          cluster: "Kubernetes",
          identity: "spiffe://cluster.local/ns/shop/sa/client",
        },
        destination: {
          address: "10.1.0.2:15008",
          workload: "server",
          namespace: "shop",
          cluster: "Kubernetes",
          identity: "spiffe://cluster.local/ns/shop/sa/server",
          service: "web.shop.svc.cluster.local",
          hboneTarget: "10.1.0.2:8080",
        },
        bytesSent: 10,
        bytesReceived: 20,
        durationMs: 250,
      },
    ]);
  });

  it("counts bytes while they flow, once, from the destination's side", () => {
    for (const [direction, sent, received] of [
      ["outbound", 20, 10],
      ["inbound", 10, 20],
    ] as const) {
      const { log, total } = newLog();
      let bytes = { sent: 4, received: 5 };
      const record = log.begin(direction);
      record.open(facts, () => bytes);
      assert.equal(total("istio_tcp_sockets_open"), 1);
      total("istio_tcp_sent_bytes_total");
      bytes = { sent: 10, received: 20 };
      assert.equal(total("istio_tcp_sent_bytes_total"), sent);
      record.close(bytes);
      assert.equal(total("istio_tcp_sent_bytes_total"), sent);
      assert.equal(total("istio_tcp_received_bytes_total"), received);
      assert.equal(total("istio_tcp_connections_opened_total"), 1);
      assert.equal(total("istio_tcp_connections_closed_total"), 1);
      assert.equal(total("istio_tcp_sockets_open"), 0);
      assert.equal(log.open, 0);
    }
  });

  it("says that nothing was encrypted nor sent when it refuses", () => {
    const { log, records, total } = newLog();
    const record = log.begin("inbound");
    record.refuse({ ...facts, reason: "plaintext_refused", detail: "both enrolled" });
    record.refuse({ ...facts, reason: "reset" });
    record.close({ sent: 1, received: 1 });
    assert.equal(records.length, 1);
    const [only] = records;
    assert.deepEqual(
      [only?.verdict, only?.encryption, only?.reason, only?.detail],
      ["refused", "none", "plaintext_refused", "both enrolled"],
    );
    assert.equal(total("istio_tcp_connections_failed_total"), 1);
    assert.equal(total("istio_tcp_connections_opened_total"), 0);
    const failed = log.snapshot().find(({ name }) => name === "istio_tcp_connections_failed_total");
    assert.equal(failed?.labels["response_flags"], "DENY");
    assert.equal(failed?.labels["connection_security_policy"], "mutual_tls");
  });

  it("counts plaintext by its reason", () => {
    const { log, total } = newLog();
    log
      .begin("inbound")
      .open({ ...facts, encryption: "plaintext", reason: "enrolling" }, () => ({ sent: 0, received: 0 }));
    assert.equal(total("veil_proxy_plaintext_total"), 1);
  });

  it("falls back to what the agent said of a pod that the control plane does not know", () => {
    const { log, records } = newLog();
    const source = {
      ...facts.source,
      workload: undefined,
      pod: { podUid: "uid", name: "client-1", namespace: "shop" },
    };
    log.begin("outbound").refuse({ ...facts, source, reason: "no_certificate" });
    assert.deepEqual([records[0]?.source.workload, records[0]?.source.namespace], ["client-1", "shop"]);
  });
});
