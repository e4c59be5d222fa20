package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kernelSettings are those that the kubelet, kube-proxy and the bridge plugin change; stopping puts them back.
var kernelSettings = []string{
	"net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/bridge/bridge-nf-call-iptables",
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
	"net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_tcp_timeout_established", "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
}

const ruleComment = "pipeops local cluster"

// firewallRules let pods out into the world, and traffic to and from them through, whatever the machine's policy is.
var firewallRules = []struct{ table, chain, rule string }{
	{"nat", "POSTROUTING", "-s " + podCIDR + " ! -d " + podCIDR + " -j MASQUERADE"},
	{"filter", "FORWARD", "-i " + bridge + " -j ACCEPT"},
	{"filter", "FORWARD", "-o " + bridge + " -j ACCEPT"},
}

// prepareNetwork adds the node's address and the firewall rules, and notes the kernel's settings; safe to repeat.
func (k cluster) prepareNetwork(ctx context.Context) error {
	if err := k.noteKernelSettings(); err != nil {
		return err
	}
	if !hasAddress() {
		if err := run(ctx, "ip", "address", "add", nodeAddress+"/32", "dev", "lo"); err != nil {
			return err
		}
	}
	for _, r := range firewallRules {
		rule := append(strings.Fields(r.rule), "-m", "comment", "--comment", ruleComment)
		at := append([]string{"-w", "-t", r.table, "-C", r.chain}, rule...)
		if run(ctx, "iptables", at...) == nil {
			continue
		}
		at[3] = "-I"
		if err := run(ctx, "iptables", at...); err != nil {
			return err
		}
	}
	return nil
}

func hasAddress() bool {
	addresses, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addresses, func(a net.Addr) bool { return strings.HasPrefix(a.String(), nodeAddress+"/") })
}

func (k cluster) settingsFile() string { return filepath.Join(k.folder(), "kernel-settings.json") }

// noteKernelSettings writes them down unless they were already: then what stands in the kernel is ours.
func (k cluster) noteKernelSettings() error {
	if _, err := os.Stat(k.settingsFile()); err == nil {
		return nil
	}
	before := map[string]string{}
	for _, setting := range kernelSettings {
		if value, err := os.ReadFile(filepath.Join("/proc/sys", setting)); err == nil {
			before[setting] = strings.TrimSpace(string(value))
		}
	}
	content, err := json.Marshal(before)
	if err != nil {
		return err
	}
	return writeFile(k.settingsFile(), content, 0o600)
}

// clearNetwork takes away the bridge, the node's address, the firewall rules and chains, and puts kernel settings back.
func (k cluster) clearNetwork(ctx context.Context) error {
	var problems []error
	if _, err := net.InterfaceByName(bridge); err == nil {
		problems = append(problems, run(ctx, "ip", "link", "delete", bridge))
	}
	if hasAddress() {
		problems = append(problems, run(ctx, "ip", "address", "delete", nodeAddress+"/32", "dev", "lo"))
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		problems = append(problems, clearFirewall(ctx, family))
	}
	return errors.Join(append(problems, k.restoreKernelSettings())...)
}

func (k cluster) restoreKernelSettings() error {
	content, err := os.ReadFile(k.settingsFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	before := map[string]string{}
	problems := []error{json.Unmarshal(content, &before)}
	for setting, value := range before {
		path := filepath.Join("/proc/sys", setting)
		now, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(now)) == value {
			continue
		}
		problems = append(problems, os.WriteFile(path, []byte(value), 0o600))
	}
	return errors.Join(append(problems, os.Remove(k.settingsFile()))...)
}

// clearFirewall removes, table by table and each table at once, our rules, the rules that lead into Kubernetes'
// chains, and those chains.
func clearFirewall(ctx context.Context, family string) error {
	saved, err := exec.CommandContext(ctx, mustProgram(family+"-save")).Output() //nolint:gosec // found by us
	if err != nil {
		return fmt.Errorf("list firewall rules with %s-save: %w", family, err)
	}
	commands := firewallRemovals(string(saved))
	if commands == "" {
		return nil
	}
	restore := exec.CommandContext(ctx, mustProgram(family+"-restore"), "--noflush", "--wait") //nolint:gosec // found by us
	restore.Stdin = strings.NewReader(commands)
	if output, err := restore.CombinedOutput(); err != nil {
		return fmt.Errorf("remove firewall rules with %s-restore: %w: %s", family, err, bytes.TrimSpace(output))
	}
	return nil
}

// firewallRemovals turns what iptables-save prints into what iptables-restore --noflush needs to remove ours.
func firewallRemovals(saved string) string {
	var out strings.Builder
	var rules, flushes, deletions []string
	for line := range strings.Lines(saved) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "*"):
			out.WriteString(line + "\n")
		case strings.HasPrefix(line, ":KUBE-"):
			chain, _, _ := strings.Cut(line[1:], " ")
			flushes, deletions = append(flushes, "-F "+chain), append(deletions, "-X "+chain)
		case strings.HasPrefix(line, "-A KUBE-"): // goes with its chain
		case strings.HasPrefix(line, "-A ") && (strings.Contains(line, "-j KUBE-") || strings.Contains(line, `--comment "`+ruleComment+`"`)):
			rules = append(rules, "-D "+line[3:])
		case line == "COMMIT":
			for _, command := range slices.Concat(rules, flushes, deletions) {
				out.WriteString(command + "\n")
			}
			out.WriteString("COMMIT\n")
			rules, flushes, deletions = nil, nil, nil
		}
	}
	if !strings.Contains(out.String(), "\n-") {
		return ""
	}
	return out.String()
}

func mustProgram(name string) string {
	if path, err := findProgram(name); err == nil {
		return path
	}
	return name
}

func run(ctx context.Context, program string, args ...string) error {
	output, err := exec.CommandContext(ctx, mustProgram(program), args...).CombinedOutput() //nolint:gosec // our own
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(output))
	}
	return nil
}
