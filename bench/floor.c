/*
 * The obvious floor: what the kernel charges for handing out what node-fixer has to know, to a
 * program that starts at once and understands nothing of it. One socket; one strict dump, filtered
 * in the kernel, each of the IPv4 and IPv6 rules, of the tables main and 2, of the links without
 * the statistics that the kernel lets one skip, and of netconf, which holds every rp_filter.
 *
 *     cc -O2 -static -o floor floor.c
 */
#include <linux/fib_rules.h>
#include <linux/netconf.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

/* The kernel fills datagrams of up to 32 KiB for a reader who offers that much. */
static char buffer[64 * 1024] __attribute__((aligned(NLMSG_ALIGNTO)));

/* Walks the headers of one datagram: 1 when the dump goes on, 0 at its end, -1 on an error. */
static int goes_on(const char *datagram, int length)
{
	const struct nlmsghdr *message = (const void *)datagram;

	for (; NLMSG_OK(message, length); message = NLMSG_NEXT(message, length)) {
		if (message->nlmsg_type == NLMSG_ERROR || (message->nlmsg_flags & NLM_F_DUMP_INTR))
			return -1;
		if (message->nlmsg_type == NLMSG_DONE)
			return *(const int *)NLMSG_DATA(message) < 0 ? -1 : 0;
	}
	return 1;
}

static void dump(int netlink, int type, const void *body, size_t length)
{
	struct {
		struct nlmsghdr header;
		char body[64];
	} request = { .header = {
		/* Padded, also for the body of one byte: strict checking insists. */
		.nlmsg_len = NLMSG_SPACE(length),
		.nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
	} };
	int state;

	memcpy(request.body, body, length);
	if (send(netlink, &request, request.header.nlmsg_len, 0) < 0)
		_exit(1);
	do {
		ssize_t received = recv(netlink, buffer, sizeof buffer, 0);

		state = received <= 0 ? -1 : goes_on(buffer, received);
	} while (state > 0);
	if (state < 0)
		_exit(1);
}

int main(void)
{
	int strict = 1, netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (setsockopt(netlink, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &strict, sizeof strict) < 0)
		return 1;

	struct fib_rule_hdr rules4 = { .family = AF_INET }, rules6 = { .family = AF_INET6 };
	struct rtmsg table_main = { .rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN };
	struct rtmsg table_2 = { .rtm_family = AF_INET, .rtm_table = 2 };
	struct netconfmsg netconf = { .ncm_family = AF_INET };
	struct {
		struct ifinfomsg header;
		struct rtattr attribute;
		unsigned int mask;
	} links = {
		.attribute = { .rta_len = RTA_LENGTH(sizeof links.mask), .rta_type = IFLA_EXT_MASK },
		.mask = RTEXT_FILTER_SKIP_STATS,
	};

	dump(netlink, RTM_GETRULE, &rules4, sizeof rules4);
	dump(netlink, RTM_GETRULE, &rules6, sizeof rules6);
	dump(netlink, RTM_GETROUTE, &table_main, sizeof table_main);
	dump(netlink, RTM_GETROUTE, &table_2, sizeof table_2);
	dump(netlink, RTM_GETLINK, &links, sizeof links);
	dump(netlink, RTM_GETNETCONF, &netconf, sizeof netconf);
	return 0;
}
