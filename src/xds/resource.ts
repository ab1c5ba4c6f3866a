import { create } from "@bufbuild/protobuf";
import { AnySchema } from "@bufbuild/protobuf/wkt";
import { DeltaDiscoveryResponseSchema, ResourceSchema, type DeltaDiscoveryResponse, type Resource } from "#proto";
import type { CodedError } from "#base/errors";
import type { CachedResource } from "./cache.ts";
import { fail } from "./errors.ts";

/** Wire forms by resource: made once, however many streams it is sent on. */
const wireForms = new WeakMap<CachedResource, Resource>();

/** Makes a response of resources and removed names. */
export function deltaResponse(content: {
  readonly typeUrl: string;
  readonly nonce: string;
  readonly resources: readonly CachedResource[];
  readonly removed: readonly string[];
}): DeltaDiscoveryResponse {
  const response = create(DeltaDiscoveryResponseSchema, { typeUrl: content.typeUrl, nonce: content.nonce });
  response.resources = content.resources.map(wireForm);
  response.removedResources = [...content.removed];
  return response;
}

function wireForm(resource: CachedResource): Resource {
  let wire = wireForms.get(resource);
  if (wire === undefined) {
    const { typeUrl, name, version, aliases, value } = resource;
    wire = create(ResourceSchema, {
      name,
      version,
      aliases: [...aliases],
      resource: create(AnySchema, { typeUrl, value }),
    });
    wireForms.set(resource, wire);
  }
  return wire;
}

/** Reads one resource of a response of type `typeUrl`: the resource, or why it cannot be taken. */
export function readResource(
  typeUrl: string,
  { name, version, aliases, resource }: Resource,
): CachedResource | CodedError {
  if (name === "") return fail("XDS_RESOURCE_NAME", `a resource of ${typeUrl} has no name`);
  if (resource === undefined || resource.typeUrl !== typeUrl) {
    const is = resource === undefined ? "nothing" : `"${resource.typeUrl}"`;
    return fail("XDS_RESOURCE_TYPE", `the resource holds ${is}, expected ${typeUrl}`, { details: { name } });
  }
  const value = resource.value.slice(); // a copy: a view would keep the whole message in memory
  return { typeUrl, name, version, aliases, value };
}
