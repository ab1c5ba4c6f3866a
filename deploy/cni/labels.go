package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"
)

const (
	maxObjectBytes = 2 << 20
	// For a pod and its namespace each: without the agent pods must not wait long for what may be away as well.
	learnTimeout = 2 * time.Second
)

// credentials is the file that the agent leaves on the node: how to read pods and namespaces while it is away.
type credentials struct {
	Server string `json:"server"`
	CA     string `json:"ca"`
	// Name to check in the server's certificate instead of its host.
	ServerName string `json:"serverName"`
	Token      string `json:"token"`
	Cert       string `json:"cert"`
	Key        string `json:"key"`
}

// podLabels is what decides about enrolment.
type podLabels struct {
	pod, namespace, annotations map[string]string
}

type object struct {
	Metadata struct {
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
}

const (
	labelMode         = "istio.io/dataplane-mode"
	labelMTLS         = "io.cilium/mtls-enabled"
	annotationSidecar = "sidecar.istio.io/status"
)

// enrolled decides as decideEligibility in src/enrolment/eligibility.ts; a test compares the two.
func (labels podLabels) enrolled() bool {
	if _, sidecar := labels.annotations[annotationSidecar]; sidecar {
		return false
	}
	if own := meaning(labels.pod); own != 0 {
		return own > 0
	}
	return meaning(labels.namespace) > 0
}

// meaning is 1 for labels that ask for enrolment, -1 for those that ask against it, and 0 for neither.
func meaning(labels map[string]string) int {
	switch {
	case labels[labelMode] == "none" || labels[labelMTLS] == "false":
		return -1
	case labels[labelMode] == "ambient" || labels[labelMTLS] == "true":
		return 1
	}
	return 0
}

// learnLabels asks the API about a pod and its namespace.
func learnLabels(file, namespace, name string) (podLabels, error) {
	if file == "" {
		return podLabels{}, errors.New("no credentials for the API are configured")
	}
	client, access, err := openAPI(file)
	if err != nil {
		return podLabels{}, err
	}
	path := "/api/v1/namespaces/" + url.PathEscape(namespace)
	inNamespace, err := read(client, access, path)
	if err != nil {
		return podLabels{}, err
	}
	pod, err := read(client, access, path+"/pods/"+url.PathEscape(name))
	if err != nil {
		return podLabels{}, err
	}
	return podLabels{pod.Metadata.Labels, inNamespace.Metadata.Labels, pod.Metadata.Annotations}, nil
}

func openAPI(file string) (*http.Client, credentials, error) {
	var access credentials
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &access)
	}
	if err != nil {
		return nil, access, fmt.Errorf("the credentials for the API are not readable: %w", err)
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: access.ServerName}
	if access.CA != "" {
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM([]byte(access.CA)) {
			return nil, access, errors.New("the credentials for the API hold no root certificate")
		}
	}
	if access.Cert != "" {
		pair, err := tls.X509KeyPair([]byte(access.Cert), []byte(access.Key))
		if err != nil {
			return nil, access, fmt.Errorf("the client certificate for the API is not usable: %w", err)
		}
		settings.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: settings}
	return &http.Client{Timeout: learnTimeout, Transport: transport}, access, nil
}

func read(client *http.Client, access credentials, path string) (object, error) {
	var found object
	request, err := http.NewRequest(http.MethodGet, access.Server+path, nil)
	if err != nil {
		return found, err
	}
	if access.Token != "" {
		request.Header.Set("Authorization", "Bearer "+access.Token)
	}
	response, err := client.Do(request)
	if err != nil {
		return found, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return found, fmt.Errorf("the API answers %s for %s", response.Status, path)
	}
	return found, json.NewDecoder(io.LimitReader(response.Body, maxObjectBytes)).Decode(&found)
}
