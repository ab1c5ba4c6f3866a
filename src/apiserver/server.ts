import { mkdirSync } from "node:fs";
import { createServer, type Server } from "node:https";
import { join } from "node:path";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { formatHostPort, type Cidr } from "#base/ip";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import { Authorizer, type Attributes } from "./authorizer.ts";
import { DEFAULT_ISSUER, type ServerConfig } from "./config.ts";
import { serveDefinitions } from "./custom-resources.ts";
import { Discovery, KUBERNETES_VERSION } from "./discovery.ts";
import { Engine, type Admission } from "./engine.ts";
import { apiserverError } from "./errors.ts";
import { refuseEscalation } from "./escalation.ts";
import { bootstrap } from "./bootstrap.ts";
import { keepKubernetesService, keepNamespaceObjects, type ControllerParts } from "./controllers.ts";
import { GarbageCollector } from "./garbage-collector.ts";
import { finalizeNamespaces } from "./namespace-controller.ts";
import { evictionAnswer, finalizeAnswer, scaleAnswer } from "./scale.ts";
import { keepKubeconfig } from "./kubeconfig.ts";
import { KubeletProxy } from "./kubelet.ts";
import { NodeAuthorizer } from "./node-authorizer.ts";
import { OpenApi } from "./openapi.ts";
import { openPki, type Pki } from "./pki.ts";
import { Registry } from "./registry.ts";
import { ResourceHandler } from "./resource-handler.ts";
import { reviewAnswers } from "./reviews.ts";
import { Router } from "./router.ts";
import { addressAt } from "./rules/services.ts";
import { Store } from "./store.ts";
import { bindingAnswer, SubresourceHandler } from "./subresources.ts";
import { TokenIssuer } from "./tokens.ts";
import { UpgradeHandler } from "./upgrade.ts";
import type { User } from "./user.ts";

/** Where to listen: an address, or a listening socket inherited as a file descriptor. */
export type ListenAddress = { readonly host: string; readonly port: number } | { readonly fd: number };

/** What takes the requests of a listening socket. */
interface Front {
  readonly router: Router;
  readonly upgrades: UpgradeHandler;
}

/** What an embedded Kubernetes API needs. */
export interface ApiServerOptions {
  /** Keeps keys and objects; made when it does not exist. One server at a time. */
  readonly dataDir: string;
  readonly listen: readonly ListenAddress[];
  /** How clients reach it; default is the first listening address. */
  readonly advertise?: { readonly host: string; readonly port: number };
  readonly serviceCidr: Cidr;
  readonly log: Log;
  readonly clock: Clock;
  readonly random: Random;
}

const READABLE_DRAIN_MS = 1000;

/**
 * The part of the Kubernetes API that Veil and kubectl need, on SQLite, over TLS with client certificates and service
 * account tokens.
 */
export class ApiServer implements Service {
  readonly name = "apiserver";
  readonly #options: ApiServerOptions;
  readonly #servers: Server[] = [];
  #store: Store | undefined;
  #resources: ResourceHandler | undefined;
  readonly #stops: (() => void)[] = [];

  constructor(options: ApiServerOptions) {
    this.#options = options;
  }

  /** The addresses it listens on, after start. */
  get addresses(): readonly { host: string; port: number }[] {
    return this.#servers.flatMap((server) => {
      const address = server.address();
      return address === null || typeof address === "string" ? [] : [{ host: address.address, port: address.port }];
    });
  }

  /** Where the kubeconfig of the administrator lies. */
  get adminKubeconfig(): string {
    return join(this.#options.dataDir, "admin.kubeconfig");
  }

  async start(signal: AbortSignal): Promise<void> {
    const { dataDir, clock, log, listen } = this.#options;
    signal.throwIfAborted();
    mkdirSync(dataDir, { recursive: true, mode: 0o700 });
    const wanted = this.#advertise();
    const pki = await openPki(dataDir, this.#names(wanted.host), clock.now());
    const store = new Store({ path: join(dataDir, "state.db"), log });
    this.#store = store;
    const front = Promise.withResolvers<Front>();
    try {
      for (const address of listen) await this.#listen(address, { front: front.promise, pki });
      const advertise = { host: wanted.host, port: wanted.port || (this.addresses[0]?.port ?? 0) };
      const config: ServerConfig = { serviceCidr: this.#options.serviceCidr, advertise, issuer: DEFAULT_ISSUER };
      front.resolve(await this.#assemble({ config, pki, store }));
      const server = `https://${formatHostPort(advertise.host, advertise.port)}`;
      const groups = ["system:masters"];
      const admin = { dataDir, user: "kubernetes-admin", groups, server };
      await keepKubeconfig(this.adminKubeconfig, admin, pki.caPem);
    } catch (error) {
      await this.drain(0);
      throw error;
    }
    log.info({ addresses: this.addresses, objects: store.size, revision: store.revision }, "api serves");
  }

  async drain(deadlineMs: number): Promise<void> {
    for (const stop of this.#stops.splice(0)) stop();
    this.#resources?.endWatches();
    const closed = this.#servers.splice(0).map((server) => {
      const done = Promise.withResolvers<void>();
      server.close(() => done.resolve());
      server.closeIdleConnections();
      const cancel = this.#options.clock.after(Math.min(deadlineMs, READABLE_DRAIN_MS), () =>
        server.closeAllConnections(),
      );
      return done.promise.finally(cancel);
    });
    await Promise.all(closed);
    this.#store?.close();
  }
  /** Puts the parts together over an open store; requests that come earlier wait for it. */
  async #assemble(given: { config: ServerConfig; pki: Pki; store: Store }): Promise<Front> {
    const { config, pki, store } = given;
    const { clock, random, log } = this.#options;
    const registry = new Registry();
    const nodes = new NodeAuthorizer(store);
    const rbac = new Authorizer(store);
    const decide = (user: User, attributes: Attributes): boolean =>
      rbac.allows(user, attributes) || nodes.allows(user, attributes);
    const escalation = refuseEscalation(rbac);
    const admit: Admission = (request) => {
      nodes.admit(request);
      escalation(request);
    };
    const engine = new Engine({ store, config, clock, random, admit });
    await bootstrap(engine, registry);
    const resources = new ResourceHandler({ engine, clock, random });
    this.#resources = resources;
    const tokens = new TokenIssuer({
      issuer: config.issuer,
      key: pki.tokenKey,
      clock,
      random,
      find: (key) => store.get(key),
    });
    await this.#startControllers({ engine, registry, log, caPem: pki.caPem });
    const kubelet = new KubeletProxy({ store, identity: pki.kubeletClient });
    this.#stops.push(() => kubelet.endAll());
    const reviews = reviewAnswers({
      store,
      tokens,
      clock,
      decide,
      allowsToken: (user, namespace, review) => nodes.allowsToken(user, namespace, review),
      rulesOf: (user, namespace) => rbac.rules(user, namespace),
    });
    const answers = {
      ...reviews,
      "*/scale": scaleAnswer(engine),
      "namespaces/finalize": finalizeAnswer(engine),
      "pods/binding": bindingAnswer(engine),
      "pods/eviction": evictionAnswer(engine),
      "pods/log": kubelet.logs.bind(kubelet),
    };
    const subresources = new SubresourceHandler({ resources, answers });
    const discovery = new Discovery(registry);
    const openApi = new OpenApi(registry);
    const documents = plainDocuments(tokens);
    const router = new Router({
      registry,
      tokens,
      decide,
      discovery,
      resources,
      subresources,
      openApi,
      documents,
      log,
    });
    return { router, upgrades: new UpgradeHandler({ router, registry, kubelet }) };
  }

  async #startControllers(parts: ControllerParts): Promise<void> {
    const collector = new GarbageCollector(parts);
    collector.start();
    this.#stops.push(serveDefinitions(parts, (resource) => this.#resources?.endWatches(resource)));
    await keepKubernetesService(parts);
    this.#stops.push(() => collector.stop(), keepNamespaceObjects(parts), finalizeNamespaces(parts));
  }

  async #listen(address: ListenAddress, parts: { pki: Pki; front: Promise<Front> }): Promise<void> {
    const { pki, front } = parts;
    const server = createServer({
      cert: pki.server.certPem,
      key: pki.server.keyPem,
      ca: pki.caPem,
      requestCert: true,
      rejectUnauthorized: false, // tokens come without a certificate; `authenticate` looks at `authorized`
      minVersion: "TLSv1.2",
      ALPNProtocols: ["http/1.1"],
      keepAlive: true, // of TCP: a watcher that vanished is noticed
      keepAliveInitialDelay: 30_000,
      keepAliveTimeout: 120_000,
      requestTimeout: 60_000,
    });
    server.on(
      "request",
      (message, response) => void front.then(async ({ router }) => router.answer(message, response)),
    );
    server.on(
      "upgrade",
      (message, socket, head) => void front.then(async ({ upgrades }) => upgrades.answer(message, socket, head)),
    );
    server.on("tlsClientError", (error, socket) => {
      this.#options.log.debug({ err: error, peer: socket.remoteAddress }, "tls handshake failed");
    });
    const listening = Promise.withResolvers<void>();
    server.once("error", (error) => listening.reject(error));
    if ("fd" in address) server.listen({ fd: address.fd }, () => listening.resolve());
    else server.listen(address.port, address.host, () => listening.resolve());
    try {
      await listening.promise;
    } catch (error) {
      const where = "fd" in address ? `file descriptor ${address.fd}` : formatHostPort(address.host, address.port);
      throw apiserverError("APISERVER_LISTEN_FAILED", `cannot listen on ${where}: ${messageOf(error)}`, {
        cause: error,
      });
    }
    this.#servers.push(server);
  }

  #advertise(): { host: string; port: number } {
    if (this.#options.advertise !== undefined) return this.#options.advertise;
    const first = this.#options.listen.find((address) => "host" in address);
    if (first === undefined)
      throw apiserverError("APISERVER_OPTION_INVALID", "--advertise is needed when only inherited sockets are used");
    return { host: ["0.0.0.0", "::"].includes(first.host) ? "127.0.0.1" : first.host, port: first.port };
  }

  /** The names and addresses in the serving certificate. */
  #names(advertised: string): readonly string[] {
    const hosts = this.#options.listen.flatMap((address) => ("host" in address ? [address.host] : []));
    const service = [
      "kubernetes",
      "kubernetes.default",
      "kubernetes.default.svc",
      "kubernetes.default.svc.cluster.local",
      "localhost",
    ];
    const first = addressAt(this.#options.serviceCidr, 1);
    const ips = ["127.0.0.1", ...(first === undefined ? [] : [first])];
    return [
      ...new Set([...service, ...ips, advertised, ...hosts.filter((host) => host !== "0.0.0.0" && host !== "::")]),
    ];
  }
}

/** Plain documents, by path: the version, and what others need to verify service account tokens themselves. */
function plainDocuments(tokens: TokenIssuer): Readonly<Record<string, () => unknown>> {
  const version = { ...KUBERNETES_VERSION, gitCommit: "", gitTreeState: "clean", buildDate: "1970-01-01T00:00:00Z" };
  return {
    "/version": () => ({ ...version, goVersion: "none", compiler: "node", platform: "linux/amd64" }),
    "/openid/v1/jwks": () => tokens.keySet(),
    "/.well-known/openid-configuration": () => ({
      issuer: tokens.issuer,
      jwks_uri: `${tokens.issuer}/openid/v1/jwks`,
      response_types_supported: ["id_token"],
      subject_types_supported: ["public"],
      id_token_signing_alg_values_supported: ["ES256"],
    }),
  };
}
