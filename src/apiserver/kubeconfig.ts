import { X509Certificate } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { systemClock } from "#base/clock";
import { issueClient, RENEW_BEFORE_MS, writeAtomically } from "./pki.ts";

/** For whom and for which server a kubeconfig is. */
export interface KubeconfigOptions {
  readonly dataDir: string;
  readonly user: string;
  readonly groups: readonly string[];
  /** URL, such as `https://172.20.0.2:6443`. */
  readonly server: string;
}

/**
 * Makes a kubeconfig with a fresh client certificate (one year), as text. Works offline with the data directory.
 * Throws `APISERVER_DATA_UNREADABLE` when there is no authority yet.
 */
export async function createKubeconfig(options: KubeconfigOptions): Promise<string> {
  const subject = { commonName: options.user, groups: options.groups };
  const files = await issueClient(options.dataDir, subject, systemClock().now());
  const encode = (pem: string): string => Buffer.from(pem).toString("base64");
  return `apiVersion: v1
kind: Config
clusters:
- name: veil
  cluster:
    server: ${options.server}
    certificate-authority-data: ${encode(files.caPem)}
users:
- name: ${JSON.stringify(options.user)}
  user:
    client-certificate-data: ${encode(files.certPem)}
    client-key-data: ${encode(files.keyPem)}
contexts:
- name: veil
  context:
    cluster: veil
    user: ${JSON.stringify(options.user)}
current-context: veil
`;
}

/** Writes a kubeconfig unless the file has one for this server that is good for another month. Making one takes a while. */
export async function keepKubeconfig(path: string, options: KubeconfigOptions, caPem: string): Promise<void> {
  if (existsSync(path) && serves(readFileSync(path, "utf8"), options.server, caPem)) return;
  writeAtomically(path, await createKubeconfig(options));
}

function serves(text: string, server: string, caPem: string): boolean {
  const pem = /client-certificate-data: (\S+)/.exec(text)?.[1];
  if (pem === undefined || !text.includes(`server: ${server}\n`)) return false;
  try {
    const certificate = new X509Certificate(Buffer.from(pem, "base64"));
    const left = certificate.validToDate.getTime() - systemClock().now();
    return certificate.checkIssued(new X509Certificate(caPem)) && left > RENEW_BEFORE_MS;
  } catch {
    return false; // whatever it is, it is written anew
  }
}
