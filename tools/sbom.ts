/** What Veil is made of, as CycloneDX: `node tools/sbom.ts FOLDER`, where FOLDER is a checkout whose modules are installed. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";

/** The part of `npm sbom`'s answer that is read here. */
interface Sbom {
  serialNumber?: string;
  metadata: { timestamp?: string };
  components: { readonly "bom-ref": string; readonly properties?: readonly { readonly name: string }[] }[];
  dependencies: { readonly ref: string }[];
}

/** Names npm's property of modules that only development needs. */
const DEVELOPMENT = "cdx:npm:package:development";

/**
 * The list of production modules. `npm sbom --omit=dev` leaves out those that a development module needs too, so everything is
 * listed and what is for development alone is taken out. Without time and serial number: the same modules, the same list.
 */
export async function billOfMaterials(folder: string): Promise<string> {
  const { stdout } = await promisify(execFile)("npm", ["sbom", "--sbom-format=cyclonedx"], {
    cwd: folder,
    maxBuffer: 64 << 20,
  });
  const sbom = JSON.parse(stdout) as Sbom; // npm's own
  delete sbom.serialNumber;
  delete sbom.metadata.timestamp;
  const isShipped = ({ properties = [] }: Sbom["components"][number]): boolean =>
    !properties.some(({ name }) => name === DEVELOPMENT);
  const left = new Set(sbom.components.filter((one) => !isShipped(one)).map((one) => one["bom-ref"]));
  sbom.components = sbom.components.filter(isShipped);
  sbom.dependencies = sbom.dependencies.filter(({ ref }) => !left.has(ref));
  return JSON.stringify(sbom);
}

if (import.meta.main) process.stdout.write(await billOfMaterials(process.argv[2] ?? "."));
