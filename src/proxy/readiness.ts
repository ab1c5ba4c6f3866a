/** What readiness is judged by. */
export interface ReadinessParts {
  /** What was never there, or is missing again: the agent, its pods, the first snapshot of addresses. */
  readonly missing: () => readonly string[];
  /** What keeps a proxy from taking connections, however long it has run. */
  readonly obstacles: () => readonly string[];
}

/** What a look says. */
export interface ReadinessLook {
  readonly isReady: boolean;
  readonly pending: readonly string[];
}

/**
 * Whether a proxy may take another's place. It is ready as soon as nothing is missing, and stays so when something is missing
 * later: its pods are served all the same, and Kubernetes takes a proxy that is not ready away before the one that replaces it is ready
 * (a DaemonSet's `maxSurge`), which would leave its node without any.
 */
export class Readiness {
  readonly #parts: ReadinessParts;
  #wasReady = false;

  constructor(parts: ReadinessParts) {
    this.#parts = parts;
  }

  look(): ReadinessLook {
    const [missing, obstacles] = [this.#parts.missing(), this.#parts.obstacles()];
    this.#wasReady ||= missing.length + obstacles.length === 0;
    return { isReady: this.#wasReady && obstacles.length === 0, pending: [...obstacles, ...missing] };
  }
}
