import { CodedError } from "#base/errors";
import { istioIssuer } from "#identity";
import { parseSpiffeId } from "#model/spiffe-id";
import { rpcTransport } from "#rpc";
import { createCsr, createKeyPair, parseCertificates } from "#x509";

// Asks the controller for certificates from wherever it is started, as whoever's token it is given. Run inside a node's network
// namespace. Input on stdin: `{ target, roots, requests: [{ token, identity, csrFor? }] }`; output: one JSON line for each request.

interface Input {
  readonly target: string;
  readonly roots: string;
  readonly requests: readonly { readonly token: string; readonly identity: string; readonly csrFor?: string }[];
}

/** What became of a request: the names in the certificate, or the authority's code. */
export interface Asked {
  readonly uris?: readonly string[];
  readonly refusal?: unknown;
  readonly message?: string;
}

async function ask(input: Input, { token, identity, csrFor }: Input["requests"][number]): Promise<Asked> {
  const serverName = "veil-controller.veil-system.svc";
  const transport = rpcTransport({
    target: input.target,
    serverName,
    roots: () => input.roots,
    token: async () => token,
  });
  const id = parseSpiffeId(identity);
  try {
    const csr = await createCsr(await createKeyPair(), parseSpiffeId(csrFor ?? identity));
    const answer = await istioIssuer({ transport }).issue(csr, id, AbortSignal.timeout(15_000));
    return { uris: parseCertificates(answer[0] ?? "", "answer").flatMap(({ extensions }) => extensions.uris) };
  } catch (error) {
    if (!(error instanceof CodedError)) throw error;
    return { refusal: error.details["refusal"] ?? error.code, message: error.message };
  }
}

const chunks: Buffer[] = [];
for await (const chunk of process.stdin) chunks.push(Buffer.from(chunk as Uint8Array)); // stdin gives bytes
const input = JSON.parse(Buffer.concat(chunks).toString()) as Input; // written by the test
const asked: Asked[] = [];
for (const request of input.requests) asked.push(await ask(input, request));
process.stdout.write(JSON.stringify(asked), () => process.exit(0));
