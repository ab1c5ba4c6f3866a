import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { deflateRawSync } from "node:zlib";
import fc from "fast-check";
import { decodeBody, readObject } from "./decode.ts";
import { findByPath, parseJsonPath } from "./json-path.ts";
import { unzipEntry } from "./kubectl.ts";
import { decodeProtobuf } from "./protobuf.ts";
import { Registry } from "./registry.ts";
import { numberParameter, parseRequest } from "./request.ts";
import { parseContinue } from "./resource-handler.ts";
import { customSchema } from "./schema/custom.ts";
import { readBySchema, type SchemaFindings } from "./schema/schema.ts";
import { parseFieldSelector, parseLabelSelector } from "./selectors.ts";
import { StatusError } from "./status.ts";

const registry = new Registry();

function refusal(code: number, pattern: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof StatusError, String(error));
    assert.equal(error.body.code, code);
    assert.match(error.message, pattern);
    return true;
  };
}

/** Runs a decoder on arbitrary input: a Status is its only way to fail. */
function neverThrows<T>(input: fc.Arbitrary<T>, decode: (value: T) => unknown): void {
  fc.assert(
    fc.property(input, (value) => {
      try {
        decode(value);
      } catch (error) {
        assert.ok(error instanceof StatusError, String(error));
      }
    }),
    { numRuns: 1000 },
  );
}

describe("label selectors", () => {
  const labels = { app: "web", tier: "1", empty: "" };
  const rows: [text: string, matches: boolean][] = [
    ["", true],
    ["app=web", true],
    ["app==web", true],
    ["app!=web", false],
    ["other!=web", true],
    ["app", true],
    ["!app", false],
    ["! other", true],
    ["app in (db, web)", true],
    ["app notin (db,web)", false],
    ["other notin (a)", true],
    ["app=web,tier=2", false],
    ["tier>0,tier<2", true],
    ["empty=", true],
    ["k8s.io/x", false],
    ["toString", false],
  ];
  for (const [text, expected] of rows) {
    it(`${text || "(empty)"} ${expected ? "matches" : "does not match"}`, () =>
      assert.equal(parseLabelSelector(text)(labels), expected));
  }

  it("name what they cannot read", () => {
    assert.throws(() => parseLabelSelector("a=b=c"), refusal(400, /"a=b=c"/));
    assert.throws(() => parseLabelSelector("app in web"), refusal(400, /"app in web"/));
    assert.throws(() => parseLabelSelector("-a=b"), refusal(400, /key "-a"/));
    assert.throws(() => parseLabelSelector("a=-b"), refusal(400, /value "-b"/));
    assert.throws(() => parseLabelSelector("a,,b"), refusal(400, /requirement ""/));
  });

  it("never throw but a Status", () => {
    const text = fc.oneof(
      fc.string(),
      fc
        .array(fc.constantFrom("a", "=", "!", " in ", "(", ")", ",", "b/c", "notin", "<"), { maxLength: 12 })
        .map((parts) => parts.join("")),
    );
    neverThrows(text, (value) => parseLabelSelector(value)({ a: "b" }));
  });
});

describe("field selectors", () => {
  it("take only the fields of the kind", () => {
    assert.deepEqual(parseFieldSelector("spec.nodeName=n1,status.phase!=Running", ["spec.nodeName", "status.phase"]), [
      { field: "spec.nodeName", equal: true, value: "n1" },
      { field: "status.phase", equal: false, value: "Running" },
    ]);
    assert.throws(
      () => parseFieldSelector("spec.image=x", ["metadata.name"]),
      refusal(400, /field label not supported: spec\.image/),
    );
    assert.throws(
      () => parseFieldSelector("metadata.name", ["metadata.name"]),
      refusal(400, /cannot read "metadata\.name"/),
    );
  });

  it("never throw but a Status", () => neverThrows(fc.string(), (text) => parseFieldSelector(text, ["a"])));
});

describe("requests", () => {
  const rows: [method: string, url: string, verb: string, target: string][] = [
    ["GET", "/api/v1/namespaces/a/pods", "list", "|v1|pods|a||"],
    ["GET", "/api/v1/namespaces/a/pods?watch=1", "watch", "|v1|pods|a||"],
    ["GET", "/api/v1/namespaces/a/pods/p/log", "get", "|v1|pods|a|p|log"],
    ["GET", "/api/v1/namespaces/a", "get", "|v1|namespaces||a|"],
    ["PUT", "/api/v1/namespaces/a/finalize", "update", "|v1|namespaces||a|finalize"],
    ["DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection", "apps|v1|deployments|a||"],
    ["PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", "patch", "apps|v1|deployments|a|d|scale"],
    ["POST", "/apis/veil.dev/v1/namespaces/a/status", "create", "veil.dev|v1|status|a||"],
    ["GET", "/api/v1/pods", "list", "|v1|pods|||"],
  ];
  for (const [method, url, verb, expected] of rows) {
    it(`${method} ${url}`, () => {
      const { verb: found, target } = parseRequest({ method, url });
      assert.equal(found, verb);
      assert.equal(
        `${target?.group}|${target?.version}|${target?.plural}|${target?.namespace}|${target?.name}|${target?.subresource}`,
        expected,
      );
    });
  }

  it("are no resources elsewhere", () => {
    for (const url of ["/", "/version", "/api", "/apis", "/api/v1", "/apis/apps/v1", "/openapi/v3"]) {
      assert.equal(parseRequest({ method: "GET", url }).target, undefined, url);
    }
  });

  it("name what cannot be decoded", () => {
    assert.throws(() => parseRequest({ method: "GET", url: "/api/v1/%E0%A4%A" }), refusal(400, /%E0%A4%A/));
    assert.throws(() => numberParameter(new URLSearchParams("limit=many"), "limit"), refusal(400, /limit: "many"/));
  });

  it("never throw but a Status", () =>
    neverThrows(
      fc.string().map((text) => `/${text}`),
      (url) => parseRequest({ method: "GET", url }),
    ));
});

describe("continue tokens", () => {
  it("are refused unless they are ours", () => {
    assert.throws(() => parseContinue("bm9wZQ"), refusal(400, /continue/));
    assert.throws(
      () => parseContinue(Buffer.from('{"v":"veil/v1","revision":"1","after":"x"}').toString("base64url")),
      refusal(400, /continue/),
    );
  });

  it("never throw but a Status", () => neverThrows(fc.string(), (text) => parseContinue(text)));
});

describe("bodies", () => {
  const pods = registry.find("", "v1", "pods");
  const kind = pods ?? assert.fail("no pods");

  it("are JSON or YAML, and say where they are not", async () => {
    assert.deepEqual(await decodeBody(Buffer.from("a: [1, 2]"), "application/yaml"), { a: [1, 2] });
    await assert.rejects(decodeBody(Buffer.from('{"a":'), "application/json"), refusal(400, /not valid JSON/));
    await assert.rejects(
      decodeBody(Buffer.from("a: [1\nb: 2"), "application/yaml"),
      refusal(400, /not valid YAML.*line 2/s),
    );
    await assert.rejects(decodeBody(Buffer.from("x"), "text/html"), refusal(415, /text\/html/));
  });

  it("stop YAML that grows by aliases", async () => {
    const bomb = [
      "a: &a [x,x,x,x,x,x,x,x,x]",
      ..."bcdefg"
        .split("")
        .map((name, index) => `${name}: &${name} [${Array(9).fill(`*${"abcdef"[index]}`).join(",")}]`),
    ].join("\n");
    await assert.rejects(decodeBody(Buffer.from(bomb), "application/yaml"), refusal(400, /alias/i));
  });

  it("name each wrong and each unknown field", () => {
    const given = (): Record<string, unknown> => ({
      metadata: { name: "p", labels: { a: 1 } },
      spec: {
        containers: [{ name: "c", image: "i", ports: [{ containerPort: "80" }], comand: ["x"] }],
        hostNetwork: "yes",
      },
    });
    assert.throws(
      () => readObject(kind, given(), "Warn"),
      refusal(
        400,
        /metadata\.labels\.a: expected a string, found 1.*spec\.containers\[0\]\.ports\[0\]\.containerPort: expected an integer.*spec\.hostNetwork: expected a boolean/s,
      ),
    );
    const unknown = {
      metadata: { name: "p" },
      spec: { containers: [{ name: "c", image: "i", comand: ["x"] }] },
      extra: 1,
    };
    assert.throws(
      () => readObject(kind, structuredClone(unknown), "Strict"),
      refusal(400, /unknown field "spec\.containers\[0\]\.comand", unknown field "extra"/),
    );
    const { object, warnings } = readObject(kind, structuredClone(unknown), "Warn");
    assert.deepEqual(warnings, ['unknown field "spec.containers[0].comand"', 'unknown field "extra"']);
    assert.equal(object["extra"], undefined, "unknown fields are dropped");
    assert.deepEqual(readObject(kind, structuredClone(unknown), "Ignore").warnings, []);
  });

  it("must be of the kind of the path", () => {
    assert.throws(
      () => readObject(kind, { apiVersion: "v1", kind: "Service", metadata: {} }, "Warn"),
      refusal(400, /Kind=Service.*Kind=Pod/),
    );
    assert.throws(() => readObject(kind, [], "Warn"), refusal(400, /must be a Pod object/));
    assert.throws(() => readObject(kind, { metadata: "x" }, "Warn"), refusal(400, /metadata: expected an object/));
  });

  it("never throw but a Status, for every kind", () => {
    const kinds = registry.kinds();
    const value = fc.tuple(
      fc.nat(kinds.length - 1),
      fc.dictionary(
        fc.constantFrom("metadata", "spec", "status", "rules", "data", "kind", "name"),
        fc.jsonValue({ maxDepth: 4 }),
      ),
    );
    neverThrows(value, ([index, body]) => readObject(kinds[index] ?? kind, structuredClone(body), "Strict"));
  });
});

describe("protobuf bodies", () => {
  const varint = (value: number): number[] => (value < 128 ? [value] : [(value & 127) | 128, ...varint(value >>> 7)]);
  const bytes = (number: number, content: Uint8Array | string): Buffer => {
    const body = Buffer.from(content);
    return Buffer.concat([Buffer.from([...varint(number * 8 + 2), ...varint(body.length)]), body]);
  };
  const integer = (number: number, value: number): Buffer => Buffer.from([...varint(number * 8), ...varint(value)]);
  const envelope = (apiVersion: string, kind: string, raw: Buffer): Buffer =>
    Buffer.concat([
      Buffer.from("k8s\0"),
      bytes(1, Buffer.concat([bytes(1, apiVersion), bytes(2, kind)])),
      bytes(2, raw),
    ]);

  it("become the object that JSON would have been", () => {
    const meta = Buffer.concat([
      bytes(1, "web"),
      bytes(3, ""),
      bytes(11, Buffer.concat([bytes(1, "app"), bytes(2, "web")])),
      bytes(8, Buffer.alloc(0)),
    ]);
    const container = Buffer.concat([bytes(1, "c"), bytes(2, "image"), bytes(3, "sleep"), bytes(3, "1")]);
    const template = bytes(2, Buffer.concat([bytes(2, container), bytes(3, "")]));
    const spec = Buffer.concat([integer(1, 0), bytes(3, template)]);
    const decoded = decodeProtobuf(
      envelope("apps/v1", "Deployment", Buffer.concat([bytes(1, meta), bytes(2, spec), bytes(3, Buffer.alloc(0))])),
    );
    assert.deepEqual(decoded, {
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: { name: "web", labels: { app: "web" } },
      spec: {
        replicas: 0,
        template: { spec: { containers: [{ name: "c", image: "image", command: ["sleep", "1"] }] } },
      },
    });
  });

  it("name the place of damage", () => {
    const good = envelope("v1", "ConfigMap", bytes(1, bytes(1, "x")));
    assert.throws(() => decodeProtobuf(Buffer.from("{}")), refusal(400, /k8s/));
    assert.throws(() => decodeProtobuf(good.subarray(0, -1)), refusal(400, /damaged/));
    assert.throws(
      () => decodeProtobuf(envelope("v1", "ConfigMap", bytes(1, Buffer.from([10, 200])))),
      refusal(400, /damaged at metadata/),
    );
    assert.throws(
      () => decodeProtobuf(envelope("x/v1", "Frob", Buffer.alloc(0))),
      refusal(415, /Frob.*application\/json/),
    );
  });

  it("never throw but a Status", () => {
    const raw = fc.uint8Array({ maxLength: 200 });
    const kinds = fc.constantFrom("Pod", "Deployment", "Service", "Event", "DeleteOptions", "TokenRequest");
    neverThrows(raw, (value) => decodeProtobuf(Buffer.concat([Buffer.from("k8s\0"), value])));
    neverThrows(fc.tuple(kinds, raw), ([kind, value]) => decodeProtobuf(envelope("v1", kind, Buffer.from(value))));
  });
});

describe("JSON paths", () => {
  const value = {
    a: { "b.c": [1, 2] },
    list: [
      { type: "x", v: "1" },
      { type: "y", v: "2" },
    ],
  };
  const rows: [path: string, found: unknown[]][] = [
    [".a['b.c'][1]", [2]],
    ['.list[?(@.type=="y")].v', ["2"]],
    [".list[*].v", ["1", "2"]],
    [".a.missing", []],
    [".a.b\\.c", [[1, 2]]],
  ];
  for (const [path, found] of rows) {
    it(path, () => assert.deepEqual(findByPath(value, parseJsonPath(path) ?? assert.fail("no path")), found));
  }

  it("are undefined when they are none", () => assert.equal(parseJsonPath("{.a"), undefined));
  it("never throw", () => neverThrows(fc.string(), (text) => findByPath(value, parseJsonPath(text) ?? [])));
});

describe("schemas of custom resources", () => {
  const schema = customSchema({
    type: "object",
    properties: {
      spec: {
        type: "object",
        required: ["size"],
        properties: {
          size: { type: "integer", minimum: 1, maximum: 5 },
          name: { type: "string", pattern: "^[a-z]+$", maxLength: 4 },
          color: { type: "string", enum: ["red", "blue"], default: "red" },
          open: { type: "object", "x-kubernetes-preserve-unknown-fields": true },
          port: { "x-kubernetes-int-or-string": true },
          tags: { type: "array", "x-kubernetes-list-type": "set", items: { type: "string" }, maxItems: 2 },
          either: {
            type: "object",
            properties: { a: { type: "string" }, b: { type: "string" } },
            oneOf: [{ required: ["a"] }, { required: ["b"] }],
          },
          maybe: { type: "string", nullable: true },
        },
      },
    },
  });
  const read = (spec: unknown): { value: Record<string, unknown>; findings: SchemaFindings } => {
    const findings: SchemaFindings = { unknown: [], wrong: [] };
    const value: Record<string, unknown> = { metadata: { name: "x" }, spec };
    readBySchema(schema, value, findings);
    return { value, findings };
  };

  it("prune, fill defaults, and keep what is open", () => {
    const { value, findings } = read({ size: 2, frob: 1, open: { x: 1 }, maybe: null });
    assert.deepEqual(value["spec"], { size: 2, open: { x: 1 }, maybe: null, color: "red" });
    assert.deepEqual(findings, { unknown: ["spec.frob"], wrong: [] });
  });

  it("name every broken condition", () => {
    const { findings } = read({
      size: 9,
      name: "TOO-LONG",
      color: "green",
      port: true,
      tags: ["a", "a"],
      either: { a: "1", b: "2" },
    });
    const fields = findings.wrong.map(({ field }) => field);
    assert.deepEqual(fields.toSorted(), [
      "spec.color",
      "spec.either",
      "spec.name",
      "spec.port",
      "spec.size",
      "spec.tags",
    ]);
    assert.deepEqual(read({}).findings.wrong, [{ field: "spec.size", message: "Required value", missing: true }]);
  });

  it("never throw, whatever the schema or the value", () => {
    neverThrows(fc.tuple(fc.jsonValue({ maxDepth: 4 }), fc.jsonValue({ maxDepth: 4 })), ([json, value]) => {
      readBySchema(customSchema(json), { spec: value }, { unknown: [], wrong: [] });
    });
  });
});

describe("ZIP archives", () => {
  const archive = (name: string, content: Buffer): Buffer => {
    const packed = deflateRawSync(content);
    const local = Buffer.alloc(30);
    local.writeUInt16LE(name.length, 26);
    const entry = Buffer.alloc(46);
    entry.writeUInt32LE(0x02014b50, 0);
    entry.writeUInt16LE(8, 10);
    entry.writeUInt32LE(packed.length, 20);
    entry.writeUInt32LE(content.length, 24);
    entry.writeUInt16LE(name.length, 28);
    const end = Buffer.alloc(22);
    end.writeUInt32LE(0x06054b50, 0);
    end.writeUInt16LE(1, 10);
    end.writeUInt32LE(30 + name.length + packed.length, 16);
    return Buffer.concat([local, Buffer.from(name), packed, entry, Buffer.from(name), end]);
  };

  it("give the file that is asked for", () => {
    const content = Buffer.from("program ".repeat(100));
    assert.deepEqual(unzipEntry(archive("kubectl/kubectl", content), "kubectl/kubectl"), content);
    assert.throws(() => unzipEntry(archive("other", content), "kubectl/kubectl"), /has no kubectl/);
  });

  it("never read past their end", () => {
    const whole = archive("a", Buffer.from("content"));
    fc.assert(
      fc.property(fc.nat(whole.length), fc.nat(whole.length - 1), fc.nat(255), (length, at, byte) => {
        const damaged = Buffer.from(whole);
        damaged[at] = byte;
        try {
          unzipEntry(damaged.subarray(0, length), "a");
        } catch (error) {
          assert.ok(error instanceof Error);
        }
      }),
      { numRuns: 1000 },
    );
  });
});
