import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { after, before, describe, it } from "node:test";
import { istioNetworkingResources, resources } from "#kube";
import type { LabStatus } from "#lab";
import { eventually, startLab, veil, VEIL, type TestLab } from "./harness.ts";

const PORT = 8080;
const ASK = fileURLToPath(new URL("ask-name.ts", import.meta.url));
const WORDS = "an-answer-about-blue-umbrellas";
const api = "networking.istio.io/v1";

function pod([name, node]: readonly [string, string], program: readonly string[], annotations = {}): object {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace: "shop", name, labels: { app: name }, annotations },
    spec: {
      nodeName: node,
      terminationGracePeriodSeconds: 1,
      containers: [{ name: "main", image: "veil", command: [...program] }],
    },
  };
}

function service(name: string, spec: object): object {
  const ports = [{ name: "http", port: 80, targetPort: PORT }];
  return { apiVersion: "v1", kind: "Service", metadata: { namespace: "shop", name }, spec: { ports, ...spec } };
}

function entry(name: string, spec: object, labels: Readonly<Record<string, string>> = {}): object {
  const ports = [{ number: 80, name: "http", protocol: "HTTP", targetPort: PORT }];
  const metadata = { namespace: "shop", name, labels };
  return { apiVersion: api, kind: "ServiceEntry", metadata, spec: { ports, resolution: "STATIC", ...spec } };
}

interface Told {
  readonly rcode: string;
  readonly ours: boolean;
  readonly answers: readonly string[];
}

describe("names in a lab", () => {
  let lab: TestLab;
  const ip = new Map<string, string>();

  before(async () => {
    lab = await startLab("names");
    await lab.apply([
      {
        apiVersion: "v1",
        kind: "Namespace",
        metadata: { name: "shop", labels: { "istio.io/dataplane-mode": "ambient" } },
      },
      pod(["web", "node2"], [VEIL, "program", "http-echo", "--port", String(PORT), "--words", WORDS]),
      pod(["client", "node1"], ["sleep", "3600"]),
      pod(["apart", "node1"], ["sleep", "3600"], { "ambient.istio.io/dns-capture": "false" }),
      service("web", { selector: { app: "web" } }),
      service("heads", { clusterIP: "None", selector: { app: "web" }, ports: [{ name: "http", port: PORT }] }),
      service("elsewhere", { type: "ExternalName", externalName: "web.shop.svc.cluster.local", ports: undefined }),
      entry("api", {
        hosts: ["api.example.com"],
        addresses: ["240.240.0.1"],
        workloadSelector: { labels: { app: "web" } },
      }),
      entry("given", { hosts: ["given.example.com"], workloadSelector: { labels: { app: "web" } } }),
      entry(
        "bare",
        { hosts: ["bare.example.com"], workloadSelector: { labels: { app: "web" } } },
        { "networking.istio.io/enable-autoallocate-ip": "false" },
      ),
      entry("all", {
        hosts: ["*.wild.example.com"],
        addresses: ["240.240.0.2"],
        workloadSelector: { labels: { app: "web" } },
      }),
    ]);
    for (const name of ["web", "client", "apart"]) ip.set(name, (await lab.readyPod("shop", name)).status?.podIP ?? "");
  });
  after(() => lab?.[Symbol.asyncDispose]());

  /** Asks inside a pod; what each question was told. */
  async function ask<T = Told>(from: string, ...questions: readonly string[]): Promise<T[]> {
    const command = [process.execPath, "--conditions=veil-source", "--disable-warning=DEP0111", ASK, ...questions];
    const { code, stdout, stderr } = await lab.execPod("shop", from, ...command);
    assert.equal(code, 0, stderr);
    return stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as T); // the program's own format
  }

  it("are the mesh's own where it knows them, and the nameserver's where it does not, over UDP and TCP", async () => {
    const found = await lab.client.find(resources.services, { namespace: "shop", name: "web" });
    const vip = found?.spec?.clusterIP;
    const [given, given6] = await eventually("addresses for the entry without any", async () => {
      const entry = await lab.client.find(istioNetworkingResources.serviceEntries, {
        namespace: "shop",
        name: "given",
      });
      return entry?.status?.addresses?.map(({ value }) => value);
    });
    assert.match(given ?? "", /^240\.240\./);
    const expected: Record<string, Told> = {
      "A web": { rcode: "NOERROR", ours: true, answers: [`web A ${vip}`] },
      "AAAA web": { rcode: "NOERROR", ours: true, answers: [] },
      "A web.shop.shop.svc.cluster.local": {
        rcode: "NOERROR",
        ours: true,
        answers: ["web.shop.shop.svc.cluster.local CNAME web.shop", `web.shop A ${vip}`],
      },
      "A heads.shop": { rcode: "NOERROR", ours: true, answers: [`heads.shop A ${ip.get("web")}`] },
      "A api.example.com": { rcode: "NOERROR", ours: true, answers: ["api.example.com A 240.240.0.1"] },
      "A x.wild.example.com": { rcode: "NOERROR", ours: true, answers: ["x.wild.example.com A 240.240.0.2"] },
      "A given.example.com": { rcode: "NOERROR", ours: true, answers: [`given.example.com A ${given}`] },
      "AAAA given.example.com": { rcode: "NOERROR", ours: true, answers: [`given.example.com AAAA ${given6}`] },
      "A bare.example.com": { rcode: "NXDOMAIN", ours: false, answers: [] },
      "A elsewhere.shop.svc.cluster.local": {
        rcode: "NOERROR",
        ours: false,
        answers: ["elsewhere.shop.svc.cluster.local CNAME web.shop.svc.cluster.local"],
      },
      "SRV _http._tcp.web.shop.svc.cluster.local": { rcode: "NOERROR", ours: false, answers: [] },
    };
    const names = Object.keys(expected);
    for (const protocol of ["udp", "tcp"]) {
      const told = await eventually(`answers over ${protocol}`, async () => {
        const all = await ask("client", ...names.map((name) => `${protocol} ${name}`));
        return all[4]?.ours === true && all[6]?.ours === true ? all : undefined; // the entries have reached the node
      });
      for (const [i, name] of names.entries()) {
        const { rcode, ours, answers } = told[i] ?? { rcode: "", ours: false, answers: [] };
        assert.deepEqual(
          { rcode, ours },
          { rcode: expected[name]?.rcode, ours: expected[name]?.ours },
          `${protocol} ${name}`,
        );
        if (!name.startsWith("SRV")) assert.deepEqual(answers, expected[name]?.answers, `${protocol} ${name}`);
        else assert.equal(answers.length, 1);
      }
    }
  });

  it("lead through mutual TLS: a service, a headless one, ServiceEntries with and without addresses, a wildcard", async () => {
    const entries = ["api", "given", "y.wild"].map((name) => `http://${name}.example.com/`);
    const urls = ["http://web/", `http://heads:${PORT}/`, ...entries];
    const pages = await ask<{ body?: string }>("client", ...urls.map((url) => `http ${url}`));
    for (const [i, { body }] of pages.entries()) assert.match(body ?? "", new RegExp(WORDS), urls[i]);
    const proxies = await lab.client.list(resources.pods, {
      namespace: "veil-system",
      labelSelector: "app=ztunnel",
    });
    const own = proxies.items.find(({ spec }) => spec?.nodeName === "node1");
    const lines = await eventually("a record of each", async () => {
      const log = await lab.kubectl("-n", "veil-system", "logs", own?.metadata?.name ?? "");
      const found = log
        .split("\n")
        .filter((line) => line.includes('src.workload="client"') && line.includes("outbound"));
      return found.length >= urls.length ? found : undefined;
    });
    for (const line of lines) assert.match(line, /encryption="?mutual_tls/);
    for (const host of ["web.shop.svc.cluster.local", "api.example.com", "given.example.com", "*.wild.example.com"])
      assert.ok(
        lines.some((line) => line.includes(`dst.service="${host}"`)),
        host,
      );
  });

  it("are the nameserver's alone for a pod that wants its DNS left alone", async () => {
    const [web, entry] = await ask("apart", "udp A web.shop.svc.cluster.local", "udp A api.example.com");
    assert.equal(web?.answers.length, 1);
    assert.equal(entry?.rcode, "NXDOMAIN");
  });

  it("of an entry say on the entry what of it is not carried", async () => {
    const ports = [
      { number: 53, name: "dns", protocol: "UDP" },
      { number: 80, name: "http", protocol: "HTTP" },
    ];
    await lab.apply([entry("odd", { hosts: ["odd.example.com"], addresses: ["240.240.0.3"], ports })]);
    await eventually("an event", async () => {
      const events = await lab.kubectl("-n", "shop", "get", "events", "-o", "wide");
      return /VeilNotCarried.*odd.*UDP is not carried/.test(events) ? true : undefined;
    });
  });

  it("are counted by type, protocol and asking service", async () => {
    const metrics = await lab.execNode("node1", "curl", "-s", "localhost:15020/metrics");
    const label = '{request_query_type="a",request_protocol="tcp",source_canonical_service="client"';
    for (const name of ["istio_dns_requests_total", "istio_dns_upstream_requests_total"])
      assert.ok(metrics.stdout.includes(`${name}${label}`), name);
    assert.match(metrics.stdout, /istio_dns_upstream_request_duration_seconds_bucket\{.*le="\+Inf"\} \d+/);
  });

  /** How many questions of pods on the client's node its proxy has had. */
  async function dnsQuestions(): Promise<number> {
    const { stdout } = await lab.execNode("node1", "curl", "-s", "localhost:15020/metrics");
    const lines = stdout.split("\n").filter((line) => line.startsWith("istio_dns_requests_total{"));
    return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  it("are not answered while a killed proxy is replaced, and answered again then", async (t) => {
    const before = await dnsQuestions();
    const watched = ask<{ longestMs: number; unanswered: number; answersSince: number }>("client", "watch web 60000");
    const { stdout } = await veil("lab", "status", "--name", lab.name, "-o", "json");
    const status = JSON.parse(stdout) as LabStatus;
    const pid = status.nodes.find(({ name }) => name === "node1")?.roles.find(({ role }) => role === "proxy")?.pid;
    const data = Number(readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ")[0]);
    await eventually("questions", async () => ((await dnsQuestions()) > before + 20 ? true : undefined));
    process.kill(data, "SIGKILL");
    const [told] = await watched;
    assert.ok(told !== undefined && told.answersSince > 0, "answers have come back");
    t.diagnostic(`without answers for ${told.longestMs} ms, ${told.unanswered} questions`);
  });
});
