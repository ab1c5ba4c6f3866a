// veil-cni is what the container runtime executes: the last plugin of the node's CNI chain. It asks the agent over its Unix socket and
// prints the agent's answer. What it decides itself is only what happens while the agent is away. docs/cni.md describes both.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	maxInputBytes  = 48 << 10
	maxAnswerBytes = 64 << 10
	// The agent answers within 25 s: a pod that the API does not know yet, and a proxy that needs a certificate.
	askTimeout = 30 * time.Second
)

// Codes of the CNI specification 1.1, section 5; from 100 on a plugin's own.
const (
	codeEnvironment  = 4
	codeInputOutput  = 5
	codeDecode       = 6
	codeConfig       = 7
	codeTryLater     = 11
	codeNotAvailable = 50
	codeAgentAway    = 101
)

const newestVersion = "1.1.0"

var supportedVersions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", newestVersion}

// configuration is the part of standard input that is read here; the agent reads it all.
type configuration struct {
	CNIVersion string          `json:"cniVersion"`
	PrevResult json.RawMessage `json:"prevResult"`
	// Where the agent listens.
	Socket string `json:"socket"`
	// Whether every pod waits for the agent, enrolled or not.
	Strict bool `json:"strict"`
	// Where Veil is installed: its own pods never wait for it.
	Namespace string `json:"namespace"`
	// File with what is needed to ask the API while the agent is away; empty: it is not asked.
	Credentials string `json:"credentials"`
}

// failure is the error that a plugin prints (section 5), and that the agent answers with.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func main() {
	answer, ok := run(os.Getenv("CNI_COMMAND"), os.Stdin)
	os.Stdout.Write(answer)
	if !ok {
		os.Exit(1)
	}
}

func run(command string, stdin io.Reader) ([]byte, bool) {
	input, err := io.ReadAll(io.LimitReader(stdin, maxInputBytes+1))
	if err != nil {
		return refuse("", codeInputOutput, "cannot read the configuration: "+err.Error())
	}
	if len(input) > maxInputBytes {
		return refuse("", codeConfig, fmt.Sprintf("the configuration is longer than %d bytes", maxInputBytes))
	}
	var config configuration
	if err := json.Unmarshal(input, &config); err != nil {
		return refuse("", codeDecode, "the configuration is not readable: "+err.Error())
	}
	if command == "VERSION" {
		if config.CNIVersion == "" {
			config.CNIVersion = newestVersion
		}
		answer, _ := json.Marshal(map[string]any{"cniVersion": config.CNIVersion, "supportedVersions": supportedVersions})
		return answer, true
	}
	if config.Socket == "" {
		return refuse(config.CNIVersion, codeConfig, "the configuration names no socket of the agent")
	}
	answer, ok, err := ask(config.Socket, input)
	if err != nil {
		return withoutAgent(command, config, err)
	}
	return answer, ok
}

// ask sends the environment and the configuration to the agent. An error means that there was no answer.
func ask(socket string, input []byte) ([]byte, bool, error) {
	environment := map[string]string{}
	for _, pair := range os.Environ() {
		if name, value, found := strings.Cut(pair, "="); found && strings.HasPrefix(name, "CNI_") && name != "CNI_PATH" {
			environment[name] = value
		}
	}
	body, err := json.Marshal(map[string]any{"env": environment, "config": string(input)})
	if err != nil {
		return nil, false, err
	}
	dial := func(string, string) (net.Conn, error) { return net.Dial("unix", socket) }
	client := http.Client{Timeout: askTimeout, Transport: &http.Transport{Dial: dial}}
	response, err := client.Post("http://agent/cni", "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, false, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes+1))
	if err == nil && len(answer) > maxAnswerBytes {
		err = errors.New("the agent's answer is too long")
	}
	return answer, response.StatusCode == http.StatusOK, err
}

// withoutAgent answers while the agent is away. Nothing has to be undone on the node for DEL and GC: the rules lie in the pod's
// namespace, and the agent learns from the API which pods are gone. STATUS fails only where no pod could start: a node whose STATUS
// fails becomes NotReady, and its pods are evicted.
func withoutAgent(command string, config configuration, cause error) ([]byte, bool) {
	switch command {
	case "ADD":
		reason, mayStart := mayStartWithoutAgent(config, os.Getenv("CNI_ARGS"))
		if !mayStart {
			return refuse(config.CNIVersion, codeAgentAway, "the agent of Veil is away and the pod must not start without it: "+reason, cause)
		}
		if len(config.PrevResult) == 0 {
			return refuse(config.CNIVersion, codeConfig, "there is no prevResult: veil-cni must be chained after another plugin")
		}
		return config.PrevResult, true
	case "DEL", "GC":
		return nil, true
	case "CHECK":
		return refuse(config.CNIVersion, codeTryLater, "the agent of Veil is away: it cannot be asked whether the pod is enrolled", cause)
	case "STATUS":
		if config.Strict {
			return refuse(config.CNIVersion, codeNotAvailable, "the agent of Veil is away, and in strict mode no pod starts without it", cause)
		}
		return nil, true
	default:
		return refuse(config.CNIVersion, codeEnvironment, "CNI_COMMAND is not one that is known: "+command)
	}
}

// mayStartWithoutAgent decides about a pod, with the reason. What cannot be learned counts as enrolled.
func mayStartWithoutAgent(config configuration, args string) (string, bool) {
	namespace, name := podOf(args)
	switch {
	case namespace == "" && name == "":
		return "it is no pod of Kubernetes", !config.Strict
	case namespace == config.Namespace:
		return "it is Veil's own", true
	case config.Strict:
		return "strict mode is on", false
	case namespace == "kube-system":
		return "its namespace is never enrolled", true
	}
	labels, err := learnLabels(config.Credentials, namespace, name)
	if err != nil {
		return "it cannot be learned whether it is enrolled (" + err.Error() + ")", false
	}
	if labels.enrolled() {
		return "its labels ask for enrolment", false
	}
	return "it is not enrolled", true
}

// podOf reads CNI_ARGS: "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;…".
func podOf(args string) (namespace, name string) {
	for _, pair := range strings.Split(args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			name = value
		}
	}
	return namespace, name
}

func refuse(version string, code int, msg string, causes ...error) ([]byte, bool) {
	if version == "" {
		version = newestVersion
	}
	details := ""
	for _, cause := range causes {
		details = cause.Error()
	}
	answer, _ := json.Marshal(failure{version, code, msg, details})
	return answer, false
}
