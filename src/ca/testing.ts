import assert from "node:assert/strict";
import { test } from "node:test";
import { kubeError, type KubeObject, type ResourceRef, type Secret, type TokenVerdict } from "#kube";
import {
  formatCertificates,
  formatPrivateKey,
  issueCertificate,
  keyPairSigner,
  createKeyPair,
  type Signer,
} from "#x509";
import type { AuthorityBackend, AuthorityState } from "./backend.ts";
import type { SecretClient } from "./secret-backend.ts";

/** For tests: one API server's Secrets, with versions and conflicts as the real one has them. */
export class FakeSecrets {
  readonly objects = new Map<string, Secret>();
  /** When set, each call fails with it. */
  failure: Error | undefined;
  #version = 0;

  /** A client of these Secrets. */
  client(): SecretClient {
    return {
      find: async <T extends KubeObject>(_: ResourceRef<T>, at: { name: string; namespace?: string | undefined }) => {
        this.#check();
        return structuredClone(this.objects.get(`${at.namespace}/${at.name}`)) as T | undefined; // only Secrets are kept
      },
      create: async <T extends KubeObject>(_: ResourceRef<T>, object: T) => {
        this.#check();
        if (this.objects.has(keyOf(object))) throw kubeError("KUBE_ALREADY_EXISTS", "it exists");
        return this.#store(object);
      },
      replace: async <T extends KubeObject>(_: ResourceRef<T>, object: T) => {
        this.#check();
        const known = this.objects.get(keyOf(object))?.metadata?.resourceVersion;
        if (known === undefined) throw kubeError("KUBE_NOT_FOUND", "it does not exist");
        if (object.metadata?.resourceVersion !== known) throw kubeError("KUBE_CONFLICT", "it has changed");
        return this.#store(object);
      },
    };
  }

  #check(): void {
    if (this.failure !== undefined) throw this.failure;
  }

  #store<T extends KubeObject>(object: T): T {
    const metadata = { ...object.metadata, resourceVersion: String(++this.#version) };
    const stored = { ...structuredClone(object), metadata };
    this.objects.set(keyOf(object), stored);
    return structuredClone(stored);
  }
}

function keyOf({ metadata }: KubeObject): string {
  return `${metadata?.namespace}/${metadata?.name}`;
}

/** For tests: what TokenReview says of a good token of the agent on `node`. */
export function agentVerdict(node: string, changes: Partial<TokenVerdict> = {}): TokenVerdict {
  return {
    authenticated: true,
    username: "system:serviceaccount:veil-system:veil-agent",
    uid: "account-uid",
    groups: ["system:serviceaccounts", "system:serviceaccounts:veil-system", "system:authenticated"],
    extra: {
      "authentication.kubernetes.io/node-name": [node],
      "authentication.kubernetes.io/pod-name": [`veil-agent-${node}`],
      "authentication.kubernetes.io/pod-uid": [`uid-${node}`],
    },
    audiences: ["istio-ca"],
    error: "",
    ...changes,
  };
}

const NOW = Date.UTC(2026, 0, 1);

/** A state with keys of `backend`'s own. */
async function makeState(backend: AuthorityBackend, root?: AuthorityState["root"]): Promise<AuthorityState> {
  const top = root ?? (await makeKey(await backend.createSigner("root"), undefined));
  const intermediate = await makeKey(await backend.createSigner("intermediate"), top);
  return { roots: [top.certificate], root: top, intermediate };
}

async function makeKey(signer: Signer, issuer: AuthorityState["root"] | undefined): Promise<AuthorityState["root"]> {
  const names = { commonName: issuer === undefined ? "root" : "intermediate", trustDomain: "cluster.local" };
  const certificate = await issueCertificate({
    purpose: { kind: issuer === undefined ? "root" : "intermediate", ...names },
    publicKeySpki: signer.publicKeySpki,
    issuer: issuer ?? { signer, certificate: undefined },
    notBeforeMs: NOW,
    notAfterMs: NOW + 86_400_000,
  });
  return { certificate, signer };
}

/** A place for one test of the suite. */
export interface BackendPlace {
  /** Gives a new handle on the same place. */
  readonly open: () => AuthorityBackend;
  /** Changes one stored part's text. */
  readonly damage: (part: string, change: (text: string) => string) => Promise<void>;
  /** All that is stored, for comparison. */
  readonly raw: () => Promise<string>;
}

/** What every backend must do. `place` gives a fresh place for each test. */
export function authorityBackendSuite(name: string, place: () => Promise<BackendPlace>): void {
  test(`${name}: what is stored is loaded by another, which can sign with it`, async () =>
    loadsWhatWasStored(await place()));
  test(`${name}: the first writer wins, and a stale version replaces nothing`, async () =>
    keepsWritersApart(await place()));
  test(`${name}: a key that it did not make is not stored`, async () => refusesForeignKeys(await place()));
  for (const [part, change, message] of DAMAGES) {
    test(`${name}: what cannot be used is an error and never replaced: ${message.source}`, async () => {
      const { open, damage, raw } = await place();
      const backend = open();
      await backend.create(await makeState(backend));
      await damage(part, change);
      const before = await raw();
      await assert.rejects(open().load(), { code: "CA_UNREADABLE", message });
      assert.equal(await backend.create(await makeState(backend)), false);
      assert.equal(await raw(), before);
    });
  }
}

const FOREIGN_KEY = formatPrivateKey(await createKeyPair());
const DAMAGES: readonly [part: string, change: (text: string) => string, message: RegExp][] = [
  ["root-cert.pem", () => "", /root-cert\.pem is missing/],
  ["root-cert.pem", (text) => text.slice(0, 100), /root-cert\.pem is damaged/],
  ["root-key.pem", () => "nonsense", /cannot read a private key in .*root-key\.pem/],
  ["ca-cert.pem", (text) => text.replaceAll("CERTIFICATE", "PRIVATE KEY"), /ca-cert\.pem is a PRIVATE KEY/],
  ["ca-key.pem", () => FOREIGN_KEY, /private key in .*ca-key\.pem is not that of the certificate/],
];

async function loadsWhatWasStored({ open }: BackendPlace): Promise<void> {
  assert.equal(await open().load(), undefined);
  const first = open();
  const state = await makeState(first);
  assert.equal(await first.create(state), true);
  const loaded = await open().load();
  assert.equal(loaded?.state.intermediate.certificate.pem, state.intermediate.certificate.pem);
  assert.equal(formatCertificates(loaded?.state.roots ?? []), formatCertificates(state.roots));
  const again = await makeKey(loaded.state.root.signer, undefined);
  assert.ok(again.certificate.openssl.verify(state.root.certificate.openssl.publicKey));
}

async function keepsWritersApart({ open }: BackendPlace): Promise<void> {
  const [a, b] = [open(), open()];
  const [ofA, ofB] = [await makeState(a), await makeState(b)];
  const won = await Promise.all([a.create(ofA), b.create(ofB)]);
  assert.deepEqual(won.toSorted(), [false, true]);
  const stored = await a.load();
  assert.ok(stored);
  const next = await makeState(a, stored.state.root);
  assert.equal(await a.replace(next, stored.version), true);
  assert.equal(await b.replace(await makeState(b), stored.version), false);
  assert.equal((await b.load())?.state.intermediate.certificate.pem, next.intermediate.certificate.pem);
}

async function refusesForeignKeys({ open }: BackendPlace): Promise<void> {
  const backend = open();
  const state = await makeState(backend);
  const signer = keyPairSigner(await createKeyPair());
  const foreign = { ...state, intermediate: { ...state.intermediate, signer } };
  await assert.rejects(backend.create(foreign), { code: "CA_FOREIGN_KEY" });
  assert.equal(await open().load(), undefined);
}
