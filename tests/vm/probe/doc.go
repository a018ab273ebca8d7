// Package probe checks inside a guest that the probes of package kernel say what is
// known of that kernel, neither more nor less.
package probe

// Env lists the capabilities that the guest has, with commas.
const Env = "VM_CAPABILITIES"

// VerityEnv is set when fs-verity and dm-verity must work in the guest.
const VerityEnv = "VM_VERITY"
