/**
 * Brings a test cluster up and keeps it until Ctrl-C: `npm run cluster`. Says where its kubeconfig is on one line.
 */
import { once } from "node:events";
import { startCluster } from "./cluster.ts";

await using cluster = await startCluster();
process.stdout.write(`KUBECONFIG=${cluster.kubeconfig}\n`);
await Promise.race([once(process, "SIGINT"), once(process, "SIGTERM")]);
