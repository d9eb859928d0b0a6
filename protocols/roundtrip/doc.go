// Package roundtrip proves two halves by each other: a mem mount served by a protocol of ours, mounted by the driver of that protocol, passes
// mounttest through both. It has tests only.
package roundtrip
