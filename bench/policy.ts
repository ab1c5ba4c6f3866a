/**
 * What authorization policies cost: each new connection, with 0, 10 and 100 policies that all have to be asked before
 * the last one allows; and a change of policies, with 10,000 running connections that are judged again.
 *
 *     node --conditions=veil-source bench/policy.ts
 *
 * The runs of the sizes are interleaved; each figure is the median of nine.
 */
import { systemClock } from "#base/clock";
import { parseCidr, parseIp } from "#base/ip";
import { EMPTY_MATCH, type Authorization } from "#model/authorization";
import { parseSpiffeId } from "#model/spiffe-id";
import { PolicyIndex, type PolicyQuestion } from "#policy";
import { Admissions } from "../src/proxy/admissions.ts";

const SIZES = [0, 10, 100] as const;
const RUNS = 9;
const DECISIONS = 50_000;
const CONNECTIONS = 10_000;

const question: PolicyQuestion = {
  identity: parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client"),
  sourceIp: parseIp("10.244.1.7"),
  destinationIp: parseIp("10.244.2.9"),
  destinationPort: 8080,
  namespace: "shop",
  policyNames: ["istio-system/istio_converted_static_strict"],
};

/** An ALLOW of three accounts on two ports from a range; only the last policy names the client. */
function policy(index: number, isLast: boolean): Authorization {
  const names = isLast ? ["client"] : [`a${index}`, `b${index}`, `c${index}`];
  const principals = names.map((name) => ({ kind: "exact" as const, value: `cluster.local/ns/shop/sa/${name}` }));
  const from = [{ ...EMPTY_MATCH, principals, sourceIps: [parseCidr("10.244.0.0/16")] }];
  const to = [{ ...EMPTY_MATCH, destinationPorts: [80, 8080] }];
  const common = { namespace: "shop", scope: "namespace", action: "allow", dryRun: false } as const;
  return { name: `p${index}`, ...common, rules: [[to, from]] };
}

function indexOf(size: number): PolicyIndex {
  const index = new PolicyIndex();
  const upserts = Array.from({ length: size }, (_, i) => policy(i, i === size - 1));
  index.apply({ upserts, unusable: [], removes: [] });
  return index;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

/** Microseconds of processor time for each decision. */
function perDecision(index: PolicyIndex): number {
  const before = cpuMs();
  let allowed = 0;
  for (let i = 0; i < DECISIONS; i++) if (index.decide(question).allowed) allowed++;
  const tookMs = cpuMs() - before;
  if (allowed !== DECISIONS) throw new Error(`${DECISIONS - allowed} decisions were wrong`);
  return (1000 * tookMs) / DECISIONS;
}

/** Milliseconds of processor time until all connections were judged again and ended, and the longest slice. */
async function perChange(index: PolicyIndex): Promise<{ totalMs: number; sliceMs: number }> {
  const admissions = new Admissions(index, systemClock());
  for (let i = 0; i < CONNECTIONS; i++) admissions.enter(question);
  const deny: Authorization = { ...policy(0, true), name: "deny", action: "deny" };
  index.apply({ upserts: [deny], unusable: [], removes: [] });
  const start = cpuMs();
  let sliceMs = 0;
  admissions.changed();
  for (let before = start; admissions.count > 0;) {
    await new Promise((resolve) => setImmediate(resolve));
    const now = cpuMs();
    sliceMs = Math.max(sliceMs, now - before);
    before = now;
  }
  index.apply({ upserts: [], unusable: [], removes: ["shop/deny"] });
  return { totalMs: cpuMs() - start, sliceMs };
}

/** Processor time of this process so far. */
function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

const indexes = SIZES.map(indexOf);
const decisions = SIZES.map((): number[] => []);
const changes = SIZES.map((): { totalMs: number; sliceMs: number }[] => []);
for (let run = 0; run < RUNS; run++) {
  for (const [i, index] of indexes.entries()) {
    decisions[i]?.push(perDecision(index));
    changes[i]?.push(await perChange(index));
  }
}

const rows = SIZES.map((size, i) => {
  const change = changes[i] ?? [];
  const figures = [
    median(decisions[i] ?? []).toFixed(2),
    median(change.map(({ totalMs }) => totalMs)).toFixed(1),
    median(change.map(({ sliceMs }) => sliceMs)).toFixed(1),
  ];
  return `| ${size} | ${figures.join(" | ")} |`;
});
process.stdout.write(
  [
    `| policies asked | a new connection, µs CPU | a change: ${CONNECTIONS} connections judged and ended, ms CPU | of it the longest slice, ms CPU |`,
    "|---|---|---|---|",
    ...rows,
    "",
  ].join("\n"),
);
