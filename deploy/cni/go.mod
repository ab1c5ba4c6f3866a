module veil.dev/cni

go 1.19
