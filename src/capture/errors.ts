import { defineErrors } from "#base/errors";

/** Failures of captures. */
export const captureError = defineErrors("capture", {
  CAPTURE_FORMAT: {
    when: "a file is no capture in pcap format, or is cut off before its first packet",
    hint: "make it with tcpdump -w",
  },
  CAPTURE_LINK_TYPE: {
    when: "a capture was made on a kind of link other than Ethernet or Linux cooked",
    hint: "capture on one interface, for example -i eth0",
  },
  CAPTURE_START: {
    when: "tcpdump could not start capturing",
    hint: "the message carries tcpdump's own words; check that tcpdump is installed, that you are root, and the interface's name",
  },
  CAPTURE_LOST: {
    when: "the kernel dropped packets of a capture, so that it proves nothing",
    hint: "capture less traffic at once, or raise tcpdump's buffer",
  },
});
