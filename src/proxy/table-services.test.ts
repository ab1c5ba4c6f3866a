import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { parseCidr, parseIp } from "#base/ip";
import { addressName, type Address, type Service, type Workload } from "#model/workload";
import { chooseEndpoint } from "./endpoints.ts";
import { WorkloadTable } from "./table.ts";
import { testService, testWorkload } from "./testing.ts";

function tableOf(...upserts: readonly Address[]): WorkloadTable {
  const table = new WorkloadTable();
  table.apply({ upserts, removes: [], old: true }, 0);
  return table;
}

/** A service of these addresses and prefixes; `network/…` for another network. */
function service(name: string, addresses: readonly string[], more: Partial<Service> = {}): Service {
  return testService(name, undefined, {
    addresses: addresses.map((text) => {
      const [, network = "", rest = ""] = /^(?:([a-z]+)\/)?(.*)$/.exec(text) ?? [];
      if (!rest.includes("/")) return { network, address: parseIp(rest), length: undefined };
      return { network, ...parseCidr(rest) };
    }),
    ...more,
  });
}

describe("a service's virtual address", () => {
  interface Row {
    readonly name: string;
    readonly services: readonly Service[];
    /** Each: an address (on the network before a slash), a client's namespace, and the service that it finds. */
    readonly finds: readonly (readonly [to: string, namespace: string, found: string | undefined])[];
  }
  const rows: readonly Row[] = [
    {
      name: "is shared between namespaces: each finds its own",
      services: [service("a", ["10.0.0.1"], { namespace: "one" }), service("b", ["10.0.0.1"], { namespace: "two" })],
      finds: [
        ["10.0.0.1", "one", "a"],
        ["10.0.0.1", "two", "b"],
      ],
    },
    {
      name: "of a service that only its namespace sees is not found from others",
      services: [service("a", ["10.0.0.1"], { namespace: "one", visibility: "namespace" })],
      finds: [
        ["10.0.0.1", "one", "a"],
        ["10.0.0.1", "two", undefined],
      ],
    },
    {
      name: "that is hidden leaves the way to a prefix",
      services: [
        service("a", ["10.0.0.1"], { namespace: "one", visibility: "namespace" }),
        service("b", ["10.0.0.0/24"], { namespace: "two" }),
      ],
      finds: [
        ["10.0.0.1", "one", "a"],
        ["10.0.0.1", "three", "b"],
      ],
    },
    {
      name: "may be a prefix of IPv4",
      services: [service("a", ["10.0.0.0/24"])],
      finds: [
        ["10.0.0.7", "shop", "a"],
        ["10.0.1.7", "shop", undefined],
      ],
    },
    {
      name: "may be a prefix of IPv6",
      services: [service("a", ["fd00:1::/64"])],
      finds: [
        ["fd00:1::7", "shop", "a"],
        ["fd00:2::7", "shop", undefined],
      ],
    },
    {
      name: "is the longest prefix of IPv4",
      services: [service("wide", ["10.0.0.0/8"]), service("narrow", ["10.1.0.0/16"])],
      finds: [
        ["10.1.0.7", "shop", "narrow"],
        ["10.2.0.7", "shop", "wide"],
      ],
    },
    {
      name: "is the longest prefix of IPv6",
      services: [service("wide", ["fd00::/16"]), service("narrow", ["fd00:1::/32"])],
      finds: [
        ["fd00:1::7", "shop", "narrow"],
        ["fd00:2::7", "shop", "wide"],
      ],
    },
    {
      name: "may be prefixes of both families",
      services: [service("a", ["10.0.0.0/24", "fd00:1::/64"])],
      finds: [
        ["10.0.0.7", "shop", "a"],
        ["fd00:1::7", "shop", "a"],
      ],
    },
    {
      name: "of one family is no prefix of the other",
      services: [service("all-four", ["0.0.0.0/0"])],
      finds: [
        ["192.0.2.1", "shop", "all-four"],
        ["fd00::1", "shop", undefined],
      ],
    },
    {
      name: "may be an address of one family and a prefix of the other",
      services: [service("a", ["10.0.0.1", "fd00:1::/64"])],
      finds: [
        ["10.0.0.1", "shop", "a"],
        ["10.0.0.2", "shop", undefined],
        ["fd00:1::7", "shop", "a"],
      ],
    },
    {
      name: "of IPv4 comes before any prefix",
      services: [service("prefix", ["10.0.0.1/32"]), service("exact", ["10.0.0.1"], { canonical: false })],
      finds: [["10.0.0.1", "shop", "exact"]],
    },
    {
      name: "of IPv6 comes before any prefix",
      services: [service("prefix", ["fd00::1/128"]), service("exact", ["fd00::1"], { canonical: false })],
      finds: [["fd00::1", "shop", "exact"]],
    },
    {
      name: "counts on its own network only",
      services: [service("here", ["10.0.0.0/24"]), service("there", ["east/10.0.0.0/16"])],
      finds: [
        ["10.0.0.7", "shop", "here"],
        ["10.0.9.7", "shop", undefined],
        ["east/10.0.0.7", "shop", "there"],
      ],
    },
    {
      name: "as the same prefix in two namespaces is the client's own, else the canonical one",
      services: [
        service("a", ["10.0.0.0/24"], { namespace: "one", canonical: false }),
        service("b", ["10.0.0.0/24"], { namespace: "two" }),
      ],
      finds: [
        ["10.0.0.7", "one", "a"],
        ["10.0.0.7", "two", "b"],
        ["10.0.0.7", "three", "b"],
      ],
    },
    {
      name: "as a prefix of the client's namespace comes before a longer one of another",
      services: [
        service("own", ["10.0.0.0/8"], { namespace: "one" }),
        service("longer", ["10.0.0.0/24"], { namespace: "two" }),
      ],
      finds: [
        ["10.0.0.7", "one", "own"],
        ["10.0.0.7", "three", "longer"],
      ],
    },
  ];
  for (const { name, services, finds } of rows) {
    it(name, () => {
      const table = tableOf(...services);
      for (const [to, namespace, found] of finds) {
        const [, network = "", ip = ""] = /^(?:([a-z]+)\/)?(.*)$/.exec(to) ?? [];
        assert.equal(table.findServiceByVip(network, parseIp(ip), namespace)?.name, found, `${to} from ${namespace}`);
      }
    });
  }

  it("goes with its service, also as a prefix", () => {
    const table = tableOf(service("a", ["10.0.0.0/24", "10.9.0.1"]), service("b", ["10.0.0.0/16"]));
    table.apply({ upserts: [], removes: ["shop/a.shop.svc.cluster.local"], old: false }, 0);
    assert.equal(table.findServiceByVip("", parseIp("10.0.0.7"), "shop")?.name, "b");
    assert.equal(table.findServiceByVip("", parseIp("10.9.0.1"), "shop"), undefined);
    table.apply({ upserts: [service("b", ["10.9.0.1"])], removes: [], old: false }, 0);
    assert.equal(table.findServiceByVip("", parseIp("10.0.0.7"), "shop"), undefined);
    assert.equal(table.findServiceByVip("", parseIp("10.9.0.1"), "shop")?.name, "b");
  });
});

describe("a hostname", () => {
  it("of a service that only its namespace sees is not found from others", () => {
    const table = tableOf(service("a", [], { namespace: "one", hostname: "a.example", visibility: "namespace" }));
    assert.equal(table.findServiceByHostname("a.example", "one")?.name, "a");
    assert.equal(table.findServiceByHostname("a.example", "two"), undefined);
  });

  it("of several services is the client's own, else the canonical one", () => {
    const table = tableOf(
      service("a", [], { namespace: "one", hostname: "a.example", canonical: false }),
      service("b", [], { namespace: "two", hostname: "a.example" }),
    );
    assert.equal(table.findServiceByHostname("a.example", "one")?.name, "a");
    assert.equal(table.findServiceByHostname("a.example", "three")?.name, "b");
  });

  it("of a workload is found in its namespace, and goes with it", () => {
    const table = tableOf(testWorkload("lone", "10.1.0.1", { hostname: "lone.example" }));
    assert.equal(table.findWorkloadByHostname("shop", "lone.example")?.name, "lone");
    assert.equal(table.findWorkloadByHostname("other", "lone.example"), undefined);
    table.apply({ upserts: [], removes: ["Kubernetes//Pod/shop/lone"], old: false }, 0);
    assert.equal(table.findWorkloadByHostname("shop", "lone.example"), undefined);
  });
});

describe("the endpoints of a service", () => {
  const web = testService("web", "10.96.0.1");
  const member = (name: string, more: Partial<Workload> = {}): Workload =>
    testWorkload(name, "10.1.0.1", { services: { [addressName(web)]: [] }, ...more });
  /** Who a connection may get to: what is staged for a service that has not come gets nobody. */
  const usable = (table: WorkloadTable): string[] => {
    const found = table.findService(addressName(web));
    if (found === undefined) return [];
    const request = { servicePort: 80, requested: parseIp("10.96.0.1"), source: undefined, sourceNetwork: "" };
    return Array.from(table.endpoints(found)).flatMap((workload) => {
      const chosen = chooseEndpoint({ ...request, service: found }, [workload], () => 0);
      return typeof chosen === "string" ? [] : [chosen.workload.name];
    });
  };
  const change = (table: WorkloadTable, upserts: readonly Address[], removes: readonly string[] = []): void => {
    table.apply({ upserts, removes, old: false }, 0);
  };

  it("wait for a service that has not come, and are judged by it when it comes", () => {
    const table = tableOf(member("good"), member("bad", { healthy: false }));
    assert.deepEqual(usable(table), []);
    change(table, [web]);
    assert.deepEqual(usable(table), ["good"]);
    change(table, [{ ...web, loadBalancing: { ...web.loadBalancing, allowUnhealthy: true } }]);
    assert.deepEqual(usable(table).toSorted(), ["bad", "good"]);
  });

  it("that have gone before their service came are not there", () => {
    const table = tableOf(member("a"), member("b"));
    change(table, [], [member("a").uid]);
    change(table, [{ ...member("b"), services: {} }]);
    change(table, [web]);
    assert.deepEqual(usable(table), []);
    assert.deepEqual(table.all().staged, []);
  });

  it("are out when they come again as unhealthy, and in when they recover", () => {
    const table = tableOf(web, member("a"));
    change(table, [member("a", { healthy: false })]);
    assert.deepEqual(usable(table), []);
    change(table, [member("a")]);
    assert.deepEqual(usable(table), ["a"]);
  });

  it("are in when one change removes and brings them", () => {
    const table = tableOf(web, member("a"));
    change(table, [member("a")], [member("a").uid]);
    assert.deepEqual(usable(table), ["a"]);
  });
});

describe("an address with two owners", () => {
  it("is the pod's, and the other's once the pod has gone", () => {
    const ip = parseIp("10.1.0.1");
    const pod = testWorkload("pod", "10.1.0.1", { tunnelProtocol: "none" });
    const entry = testWorkload("entry", "10.1.0.1", {
      uid: "Kubernetes/networking.istio.io/WorkloadEntry/shop/entry",
    });
    const table = tableOf(pod, entry);
    table.apply({ upserts: [pod], removes: [], old: false }, 0);
    assert.equal(table.size, 2);
    assert.equal(table.findWorkloadByIp("", ip)?.name, "pod");
    table.apply({ upserts: [], removes: [pod.uid], old: false }, 0);
    assert.equal(table.findWorkloadByIp("", ip)?.name, "entry");
    table.apply({ upserts: [], removes: [entry.uid], old: false }, 0);
    assert.equal(table.findWorkloadByIp("", ip), undefined);
  });

  it("is the newcomer's when a pod's address is used again, for everything that is decided from then on", () => {
    const ip = parseIp("10.1.0.1");
    const table = tableOf(testWorkload("before", "10.1.0.1"));
    table.apply(
      { upserts: [testWorkload("after", "10.1.0.1")], removes: ["Kubernetes//Pod/shop/before"], old: false },
      5,
    );
    assert.equal(table.findWorkloadByIp("", ip)?.name, "after");
    assert.equal(table.enrolledSinceMs("Kubernetes//Pod/shop/before"), undefined);
    assert.equal(table.enrolledSinceMs("Kubernetes//Pod/shop/after"), 5);
  });
});
