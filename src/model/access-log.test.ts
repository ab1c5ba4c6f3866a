import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import {
  accessLevel,
  AccessLines,
  accessPasses,
  findAccessRecord,
  formatLost,
  type AccessEvent,
  type AccessFormat,
} from "./access-log.ts";
import type { FlowRecord } from "./flow.ts";
import { parseSpiffeId } from "./spiffe-id.ts";

const record: FlowRecord = {
  timeMs: Date.parse("2026-01-01T00:00:00.250Z"),
  direction: "outbound",
  verdict: "forwarded",
  encryption: "mutual_tls",
  reason: "ok",
  detail: "",
  traceId: "0af7651916cd43dd8448eb211c80319c",
  source: {
    address: "10.1.0.1:4000",
    workload: "client",
    namespace: "shop",
    cluster: "Kubernetes",
    identity: parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client"),
  },
  destination: {
    address: "10.1.0.2:15008",
    workload: "server",
    namespace: "shop",
    cluster: undefined,
    identity: parseSpiffeId("spiffe://cluster.local/ns/shop/sa/server"),
    service: "web.shop.svc.cluster.local",
    hboneTarget: "10.1.0.2:8080",
  },
  bytesSent: 5,
  bytesReceived: 9,
  durationMs: 12,
};

function eventOf({ source, destination, dryRun, ...rest }: FlowRecord): AccessEvent {
  return { ...rest, dryRun, from: source.address, to: destination.address, hboneTarget: destination.hboneTarget };
}

function formatAccess(format: AccessFormat, flow: FlowRecord): string {
  return new AccessLines(format, flow).ended(eventOf(flow));
}

function formatOpened(format: AccessFormat, flow: FlowRecord): string {
  return new AccessLines(format, flow).opened(eventOf(flow));
}

describe("the access log", () => {
  it("is text in upstream's shape, its fields in upstream's order, absent ones left out", () => {
    assert.equal(
      formatAccess("plain", record),
      "2026-01-01T00:00:00.250Z\tinfo\taccess\tconnection complete\t" +
        'src.addr=10.1.0.1:4000 src.workload="client" src.namespace="shop" ' +
        'src.identity="spiffe://cluster.local/ns/shop/sa/client" src.cluster="Kubernetes" ' +
        'dst.addr=10.1.0.2:15008 dst.hbone_addr=10.1.0.2:8080 dst.service="web.shop.svc.cluster.local" ' +
        'dst.workload="server" dst.namespace="shop" dst.identity="spiffe://cluster.local/ns/shop/sa/server" ' +
        'direction="outbound" bytes_sent=5 bytes_recv=9 duration="12ms" ' +
        'verdict="forwarded" encryption="mutual_tls" reason="ok" trace.id="0af7651916cd43dd8448eb211c80319c"',
    );
  });

  it("is JSON with the same keys on demand", () => {
    const line = JSON.parse(formatAccess("json", record)) as Record<string, unknown>;
    assert.deepEqual(Object.keys(line).slice(0, 5), ["level", "time", "scope", "message", "src.addr"]);
    assert.equal(line["scope"], "access");
    assert.equal(line["bytes_sent"], 5);
    assert.equal(line["duration"], "12ms");
    assert.ok(!("dst.cluster" in line) && !("error" in line));
  });

  it("is as loud as upstream's: broken and denied connections are errors, early refusals warnings, openings details", () => {
    const line = (more: Partial<FlowRecord>): string[] => formatAccess("plain", { ...record, ...more }).split("\t");
    assert.deepEqual(line({ reason: "reset", detail: "HBONE_RESET: gone" }).slice(1, 4), [
      "error",
      "access",
      "connection complete",
    ]);
    assert.match(line({ reason: "reset", detail: "HBONE_RESET: gone" })[4] ?? "", / error="HBONE_RESET: gone" /);
    assert.equal(line({ verdict: "refused", reason: "policy_not_enforced" })[1], "error");
    const early = line({ verdict: "refused", reason: "draining" });
    assert.deepEqual(early.slice(1, 4), ["warn", "access", "connection failed"]);
    assert.match(early[4] ?? "", / error="draining" /, "a refusal always says why");
    assert.deepEqual(formatOpened("plain", record).split("\t").slice(1, 4), ["debug", "access", "connection opened"]);
    assert.equal(accessLevel(record), "info");
    assert.deepEqual(
      (["off", "error", "warn", "info", "debug"] as const).map((threshold) => accessPasses(threshold, "warn")),
      [false, false, true, true, true],
    );
  });

  it("reads its own lines again, and nothing else", () => {
    for (const format of ["plain", "json"] as const) {
      assert.deepEqual(findAccessRecord(formatAccess(format, record)), record);
      assert.equal(findAccessRecord(formatOpened(format, record)), undefined);
      assert.equal(findAccessRecord(formatLost(format, 3, 0)), undefined);
    }
    assert.equal(findAccessRecord('{"level":"info","time":1,"message":"connection complete"}'), undefined);
    assert.equal(findAccessRecord("connection complete"), undefined);
  });

  it("cannot be forged by what a peer may write, in either format", () => {
    const word = fc.string({ unit: "binary", minLength: 1, maxLength: 40 });
    fc.assert(
      fc.property(word, word, fc.constantFrom("plain", "json"), (authority, detail, format) => {
        const hostile: FlowRecord = {
          ...record,
          verdict: "refused",
          reason: "bad_request",
          encryption: "none",
          detail,
          destination: { ...record.destination, hboneTarget: authority },
        };
        const line = formatAccess(format, hostile);
        assert.ok(!line.includes("\n"));
        const expected = detail === "bad_request" ? { ...hostile, detail: "" } : hostile;
        assert.deepEqual(findAccessRecord(line), expected);
      }),
    );
  });

  it("never throws on any line", () => {
    fc.assert(fc.property(fc.string({ unit: "binary" }), (line) => void findAccessRecord(line)));
    fc.assert(
      fc.property(fc.array(fc.string()), (parts) => void findAccessRecord(`t\tinfo\taccess\t${parts.join("\t")}`)),
    );
    fc.assert(fc.property(fc.json(), (json) => void findAccessRecord(json)));
  });
});
